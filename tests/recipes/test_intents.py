import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headstart import recipes
from headstart.adapted import adapt_run, load
from headstart.cli import main
from headstart.recipes import OwnTextRecipe, work
from headstart.training.run import Run

EXPERIMENTS = recipes.experiments()
SMALL = {"size": 8, "buckets": 256, "length": 16}
OPTIONS = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]


def own_texts(folder: Path, labels: int = 25, texts: int = 6) -> Path:
    """A CSV file in which every text tells its label."""
    rows = [f"text {i} about subject{label},label {label:02d}" for label in range(labels) for i in range(texts)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder / "texts.csv"


def support(folder: Path) -> Path:
    (folder / "support.csv").write_text("text,label\npay my bill,pay\nlost card,lost\n")
    return folder / "support.csv"


@pytest.mark.parametrize("learner", ["protonet", "maml", "lora"])
def test_learners_train_on_own_texts_and_adapt(tmp_path, capsys, learner):
    run, adapted = tmp_path / "run", tmp_path / "adapted"
    command = ["train", "my-text", "--data", str(own_texts(tmp_path)), "--smoke", "--out", str(run), *OPTIONS]
    assert main([*command, "--learner", learner]) == 0
    assert main(["evaluate", str(run), "--num-tasks", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(0 <= step["mean"] <= 1 for step in result["per_step"])
    assert main(["adapt", str(run), "--support", str(support(tmp_path)), "--out", str(adapted)]) == 0
    (tmp_path / "rows.txt").write_text("pay my bill\nlost card\n")
    capsys.readouterr()
    assert main(["predict", str(adapted), str(tmp_path / "rows.txt"), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["text"] == "pay my bill"
    assert set(first["probabilities"]) == {"lost", "pay"}
    if learner == "protonet":  # the support texts themselves: distance 0
        assert (first["class"], second["class"]) == ("pay", "lost")


def test_an_adapted_model_is_the_same_when_loaded(tmp_path):
    recipe = OwnTextRecipe.from_config(work.config_of("my-text", EXPERIMENTS["my-text"].recipe)["settings"])
    data = own_texts(tmp_path)
    recipe = replace(recipe.smoke(), **SMALL).fitted(data)
    run = Run(tmp_path / "run")
    run.start(work.config_of("my-text", recipe, data))
    recipe.trainer(run, data, "cpu").train()
    model, notes = adapt_run(run, support(tmp_path))
    model.save(tmp_path / "adapted")
    assert load(tmp_path / "adapted").predict(support(tmp_path)) == model.predict(support(tmp_path))
    assert notes == ()


def test_own_labels_are_split_and_small_ones_left_out(tmp_path, caplog):
    data = own_texts(tmp_path)
    data.write_text(data.read_text() + "alone,tiny\n")
    recipe = EXPERIMENTS["my-text"].recipe
    with caplog.at_level("WARNING"):
        fitted = recipe.fitted(data)
    assert "1 of 26 labels are left out, for they have fewer than the 6 texts" in caplog.text
    assert "tiny (1)" in caplog.text
    parts = [set(fitted.texts(part, data)) for part in ("train", "val", "test")]
    assert list(map(len, parts)) == [15, 5, 5]
    assert set.union(*parts) == {f"label {label:02d}" for label in range(25)}
    assert [set(fitted.train_labels), set(fitted.val_labels), set(fitted.test_labels)] == parts


def test_what_is_added_to_the_file_moves_no_label(tmp_path, caplog):
    data = own_texts(tmp_path, labels=20)
    recipe = EXPERIMENTS["my-text"].recipe.fitted(data)
    before = {part: recipe.texts(part, data) for part in ("train", "val", "test")}
    own_texts(tmp_path, labels=60)
    assert {part: recipe.texts(part, data) for part in before} == before  # and the new labels are in none
    assert "left out" not in caplog.text
    with pytest.raises(ValueError, match="ways=5 but there are 0 classes of texts"), caplog.at_level("WARNING"):
        recipe.source("test", data, shots=4, queries=3)
    assert "5 of 5 labels are left out, for they have fewer than the 7 texts" in caplog.text
    own_texts(tmp_path, labels=8)
    with pytest.raises(ValueError, match="lacks the labels label 08, label 11, label 19 that this run knows"):
        recipe.texts("test", data)


def test_labels_of_a_part_can_be_chosen(tmp_path):
    data, chosen = own_texts(tmp_path), tuple(f"label {label:02d}" for label in (3, 7, 11, 20, 24))
    recipe = replace(EXPERIMENTS["my-text"].recipe, test_labels=chosen).fitted(data)
    assert recipe.test_labels == chosen
    assert not set(chosen) & {*recipe.train_labels, *recipe.val_labels}
    with pytest.raises(ValueError, match="no usable classes label 99"):
        replace(recipe, test_labels=("label 99",)).fitted(data)


def test_labels_must_be_split_before_tasks_are_drawn(tmp_path):
    with pytest.raises(ValueError, match="not split into parts yet"):
        EXPERIMENTS["my-text"].recipe.source("train", own_texts(tmp_path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text,label\n" + "a,b\n" * 9, "0 usable classes are too few"),
        (None, "14 usable classes are too few (4 to train, 5 to val, 5 to test): with 5 ways each of the three"),
        ("sentence,label\na,b\n", "its first line must name the columns text and label"),
    ],
)
def test_own_texts_that_cannot_be_used_are_told(tmp_path, capsys, content, told):
    data = own_texts(tmp_path, labels=14)
    if content is not None:
        data.write_text(content)
    assert main(["train", "my-text", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_own_texts_must_be_named(tmp_path, capsys):
    assert main(["train", "my-text", "--out", str(tmp_path / "run")]) == 2
    assert "say where it is by --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dropout": 1.0}, "dropout is a share"),
        ({"buckets": 1}, "buckets must be 2 or more"),
        ({"length": 0}, "length"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        replace(EXPERIMENTS["clinc150-5way-1shot"].recipe, **wrong)


def test_bank_queries_have_no_domains(capsys, tmp_path):
    options = ["--split", "domains", "--data", str(tmp_path), "--smoke", "--out", str(tmp_path / "run")]
    assert main(["train", "banking77-5way-1shot", *options]) != 0
    assert "Banking77 is of one domain" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clinc150-5way-1shot", "banking77-5way-1shot"])
def test_the_published_data_train_and_evaluate(tmp_path, name):
    folder = os.environ.get("HEADSTART_DATA")
    if folder is None or not (Path(folder) / name.partition("-")[0]).is_dir():
        pytest.skip("the real intents are not here: set HEADSTART_DATA to a folder with clinc150/ and banking77/")
    recipe = replace(EXPERIMENTS[name].recipe.smoke(), **SMALL)
    run = Run(tmp_path)
    run.start(work.config_of(name, recipe))
    recipe.trainer(run, Path(folder), "cpu").train()
    result = work.evaluate_run(run, num_tasks=3, data=Path(folder))
    assert result["queries"] == 15
    assert result["per_step"][-1]["mean"] is not None


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "pay", "my", "bill", "lost", "card", "text", "about"]


@pytest.fixture
def bert(tmp_path, monkeypatch) -> Path:
    """A tiny encoder with its tokenizer, saved."""
    transformers = pytest.importorskip("transformers", reason="pretrained encoders need the extra hf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer = transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)})
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_pretrained_encoder_reads_as_it_was_trained_to(bert):
    import transformers

    recipe = replace(EXPERIMENTS["my-text"].recipe.with_learner("anil"), encoder=str(bert), length=10)
    tokens = recipe.encode(["pay my bill", "lost card"])
    assert tokens[0].tolist() == [3, 6, 7, 8, 4, 0, 0, 0, 0, 0]  # each id plus 1: 0 is where the text has ended
    model = recipe.model().eval()
    torch.nn.init.normal_(model.head.weight)
    given = transformers.AutoTokenizer.from_pretrained(bert)(
        ["pay my bill", "lost card"], padding=True, return_tensors="pt"
    )
    states = transformers.AutoModel.from_pretrained(bert).eval()(**given).last_hidden_state
    there = given["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(model(tokens), model.head((states * there).sum(1) / there.sum(1)))


@pytest.mark.parametrize("learner", ["anil", "lora"])
def test_a_pretrained_encoder_is_frozen_and_adapts(tmp_path, bert, capsys, learner):
    run, adapted = tmp_path / "run", tmp_path / "adapted"
    command = ["train", "my-text", "--data", str(own_texts(tmp_path)), "--smoke", "--out", str(run), "--length", "12"]
    assert main([*command, "--learner", learner, "--encoder", str(bert)]) == 0
    assert Run(run).config()["settings"]["encoder"] == str(bert)
    _, trained, _ = work.trained(Run(run))
    fresh = EXPERIMENTS["my-text"].recipe.with_learner("anil")
    before = dict(replace(fresh, encoder=str(bert)).model().named_parameters())
    after = {
        name.replace("parametrizations.weight.original", "weight"): p for name, p in trained.model.named_parameters()
    }
    assert all(torch.equal(p, after[name]) for name, p in before.items() if name.startswith("encoder"))
    assert any(not torch.equal(p, after[name]) for name, p in before.items() if name.startswith("head"))
    assert trained.vectorize != "loop"
    assert main(["adapt", str(run), "--support", str(support(tmp_path)), "--out", str(adapted)]) == 0
    capsys.readouterr()
    assert main(["predict", str(adapted), str(support(tmp_path)), "--json"]) == 0
    assert [row["text"] for row in json.loads(capsys.readouterr().out)] == ["pay my bill", "lost card"]


def test_encoders_that_cannot_be_had_are_told(tmp_path, capsys):
    pytest.importorskip("transformers", reason="pretrained encoders need the extra hf")
    data = str(own_texts(tmp_path))
    command = ["train", "my-text", "--data", data, "--out", str(tmp_path / "run"), "--learner", "anil", "--encoder"]
    assert main([*command, str(tmp_path / "absent")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*command, str(tmp_path / "empty")]) == 2
    assert "holds no Hugging Face encoder" in capsys.readouterr().err


def saved(kind: str, folder: Path, **settings) -> Path:
    """A tiny model of that kind with a tokenizer of `WORDS`, saved."""
    transformers = pytest.importorskip("transformers", reason="pretrained encoders need the extra hf")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(kind, vocab_size=len(WORDS), bos_token_id=2, eos_token_id=3, **settings)
    ).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return folder


GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
DEBERTA = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("gpt2", GPT2, "(GPT2Model) cannot be used (it does not read a text as a whole): take one built like BERT"),
        ("t5", T5, "(T5Model) cannot be used (You must specify"),
        ("deberta-v2", DEBERTA, "(DebertaV2Model) cannot be used (The size of tensor"),
    ],
)
def test_encoders_that_compute_something_else_here_are_refused(tmp_path, capsys, kind, settings, told):
    folder, run = saved(kind, tmp_path / kind, **settings), tmp_path / "run"
    command = ["train", "my-text", "--data", str(own_texts(tmp_path)), "--out", str(run), "--learner", "anil"]
    assert main([*command, "--encoder", str(folder), "--length", "16"]) == 2
    assert told in capsys.readouterr().err
    assert not run.exists()


def test_texts_longer_than_the_encoders_positions_are_told_before_training(tmp_path, bert, capsys):
    command = ["train", "my-text", "--data", str(own_texts(tmp_path)), "--out", str(tmp_path / "run")]
    assert main([*command, "--learner", "anil", "--encoder", str(bert), "--length", "33"]) == 2
    assert "no greater --length than it has positions (it is 33 now)" in capsys.readouterr().err


def test_an_encoder_in_half_precision_is_read_in_single(bert):
    import transformers

    transformers.AutoModel.from_pretrained(bert).bfloat16().save_pretrained(bert)
    recipe = replace(EXPERIMENTS["my-text"].recipe.with_learner("anil"), encoder=str(bert), length=10)
    recipe.check(torch.device("cpu"))
    assert recipe.model()(recipe.encode(["pay my bill"])).dtype == torch.float32


def test_a_resumed_run_finds_its_encoder_and_its_labels(tmp_path, bert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--learner", "anil", "--encoder", "bert", "--length", "12", "--smoke", "--out", str(tmp_path / "run")]
    command = ["train", "my-text", "--data", str(own_texts(tmp_path, labels=16)), *options]
    assert main(command) == 0
    before = Run(tmp_path / "run").config()
    own_texts(tmp_path, labels=30)
    assert main([*command, "--resume"]) == 0
    assert Run(tmp_path / "run").config() == before


def test_a_frozen_encoder_needs_a_learner_that_can_learn():
    with pytest.raises(
        ValueError, match="the learner protonet would have nothing to learn: add --learner anil or lora"
    ):
        replace(EXPERIMENTS["my-text"].recipe, encoder="anything")
