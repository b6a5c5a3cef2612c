"""The notebook "Twelve tokens", run on small results."""

import json

import nbformat
import torch

import tiny
from nucleoscope import notebooks, picks, results

TEXT = "the rain in Spain stays mainly in the plain, and سلام 你好 <script>alert(1)</script>"


def test_twelve_tokens_are_shown_each_with_its_card(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.model(), tiny.tokenizer(bos=False))
    for dataset, seed in (("alpha", 0), ("beta", 100)):
        folder = tmp_path / "results" / dataset / "tiny"
        folder.mkdir(parents=True)
        torch.save([tiny.record(TEXT, seed=seed + number) for number in range(10)], folder / results.MEASUREMENTS)
        settings = {"model_name": name, "model": {"source": "folder"}}
        results.write_json(folder / results.RUN_INFO, {"settings": settings})
    notebooks.execute("twelve", tmp_path / "twelve.ipynb", {"results_dir": str(tmp_path / "results")})
    cells = nbformat.read(tmp_path / "twelve.ipynb", as_version=4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    strips = [output["text/html"] for output in data if "nucleoscope-strip" in output.get("text/html", "")]
    assert len(strips) == 12
    tables, _ = results.load_cells(tmp_path / "results")
    lines = [output["text/markdown"] for output in data if "text/markdown" in output]
    assert lines == [
        f"The model is tiny, on alpha, beta: {sum(map(len, tables.values())):,} tokens.",
        *map(picks.numbers, picks.corners(tables).itertuples()),
    ]
    for html, token in zip(strips, picks.corners(tables).itertuples(), strict=True):
        payload = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
        assert payload["first"] + payload["shown"] == token.step
        assert payload["quantities"][-1]["values"][payload["shown"]] == token.k
