"""What `upweight info` has to say about a store."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import stores
from upweight.cache.errors import StoreError
from upweight.cache.store import Store, VariantLayout, describe


def test_everything_about_a_complete_store(tmp_path: Path):
    damped = VariantLayout(name="damped", attributes={"query_label": "predicted"})
    path = stores.complete(tmp_path / "influence.h5", variants=[*stores.layout()["variants"], damped])
    told = describe(path)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["path"] == str(path)
    assert told["bytes"] == path.stat().st_size
    assert (told["format"], told["version"]) == ("upweight-influence", "1.0")
    assert told["created"].startswith("2")
    assert told["complete"] is True
    assert told["tiles"] == {"done": 24, "total": 24}
    assert told["examples"]["queries"] == {
        "count": 7,
        "kept": {"index": [7], "label": [7], "prediction": [7], "loss": [7], "residual": [7, 3], "features": [7, 4]},
    }
    assert told["config"] == stores.layout()["config"]
    assert len(told["config_digest"]) == 64
    assert told["hashes"] == {"model": "m" * 8, "data": "d" * 8}
    assert "torch" in told["versions"]
    main, other = told["variants"][""], told["variants"]["damped"]
    assert main["scores"]["queries"] == {
        "shape": [7, 5],
        "dtype": "float32",
        "tiles": {"done": 9, "total": 9},
        "rows_per_tile": 3,
        "columns_per_tile": 2,
    }
    assert main["scores"]["train"]["shape"] == [5, 5]
    assert main["curvature"] == {"name": "LinearHead", "damping": 0.0, "rcond": None}
    assert main["spectrum"] == stores.SPECTRUM.to_dict()
    assert (main["unit"], main["sign"]) == ("nats per unit weight", "+g_query H^+ g_train; positive = helpful")
    assert (other["query_label"], other["spectrum"], list(other["scores"])) == ("predicted", None, ["queries"])


def test_an_unfinished_store_even_while_it_is_written(tmp_path: Path):
    path = tmp_path / "influence.h5"
    with Store.create_or_resume(path, **stores.layout()) as store:
        stores.write(store, stores.tiles(store)[:4])
        told = describe(path)
    assert told == describe(tmp_path / "influence.h5.partial")
    assert told["complete"] is False
    assert told["tiles"] == {"done": 4, "total": 15}
    assert told["path"] == f"{path}.partial"


def test_all_tiles_but_no_name_is_not_complete(tmp_path: Path):
    with Store.create_or_resume(tmp_path / "influence.h5", **stores.layout()) as store:
        stores.write(store)
    assert describe(tmp_path / "influence.h5")["complete"] is False


def test_numbers_that_json_lacks_become_text(tmp_path: Path):
    empty = replace(stores.SPECTRUM, rank=0, smallest_kept=math.nan, condition=math.inf)
    path = stores.complete(tmp_path / "influence.h5", variants=[VariantLayout(name="", spectrum=empty)])
    spectrum = describe(path)["variants"][""]["spectrum"]
    assert (spectrum["smallest_kept"], spectrum["condition"]) == ("nan", "inf")


def test_a_missing_one(tmp_path: Path):
    with pytest.raises(StoreError, match="There is no file"):
        describe(tmp_path / "influence.h5")
