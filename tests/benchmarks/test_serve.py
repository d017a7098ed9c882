import json

from benchmarks import serve


def test_the_quick_benchmark_measures_a_server(tmp_path, capsys):
    serve.main(["--quick", "--out", str(tmp_path / "serve.json")])
    result = json.loads((tmp_path / "serve.json").read_text())
    assert (result["alone"]["answers"], result["alone"]["errors"]) == (5, 0)
    assert result["together"]["answers"] > 0
    assert result["together"]["errors"] == 0
    assert (len(result["memory"]["resident_mib"]), result["memory"]["errors"]) == (11, 0)
    assert result["memory"]["resident_mib"][0] > 50
    assert result["alone"]["adaptation_ms"]["median"] < result["alone"]["whole_ms"]["median"]
    assert "| one visitor | 5 | 0 |" in capsys.readouterr().out


def test_what_cannot_be_answered_counts_as_an_error():
    import asyncio

    import httpx2

    async def ask():
        transport = httpx2.MockTransport(lambda request: httpx2.Response(503, json={"error": "Too many."}))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            visit = serve.Visits(client)
            await visit.characters()
            return visit.clear()

    found = asyncio.run(ask())
    assert (found["answers"], found["errors"]) == (0, 1)
    assert "503" in found["first_error"]
