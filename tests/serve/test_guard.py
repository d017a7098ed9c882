import pytest
from starlette.testclient import TestClient

from headstart.serve.app import application
from headstart.serve.guard import HEADERS


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:9000", "LOCALHOST:8000"])
def test_it_may_be_asked_by_its_own_names(client, host):
    assert client.get("/api/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_a_name_pointed_at_this_machine_is_refused(client, host):
    response = client.get("/api/models", headers={"host": host})
    assert response.status_code == 403
    assert "asked as" in response.json()["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999", "http://[", "file://"])
def test_pages_of_other_sites_are_refused(client, origin):
    response = client.post("/api/curve", json={"points": [[0, 0]]}, headers={"origin": origin})
    assert response.status_code == 403
    assert "may not ask" in response.json()["error"]


def test_its_own_page_may_ask(client):
    own = {"origin": "http://localhost:8000"}
    assert client.post("/api/curve", json={"points": [[0, 0]]}, headers=own).status_code == 200


def test_at_another_address_any_name_goes_but_no_other_page(models):
    with TestClient(application(models, names=None), base_url="http://lab.example") as client:
        assert client.get("/api/models").status_code == 200
        assert client.get("/api/models", headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/api/models", "/nothing", "/api/run"])
def test_every_answer_says_what_a_browser_may_do(client, path):
    headers = client.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe-inline" not in headers["content-security-policy"]
