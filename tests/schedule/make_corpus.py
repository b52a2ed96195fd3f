"""Writes the corpus of valid and invalid schedule documents: ``python -m tests.schedule.make_corpus``.

The corpus is the truth that parser and JSON Schema are held to; run this only to add documents, and read the
difference. ``tests/golden/schedules/faults.json`` says for each invalid document what the parser's message contains,
and whether JSON Schema can see the fault.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scheduler_search.schedule.canonical import digest_of

FOLDER = Path(__file__).parents[1] / "golden" / "schedules"
Document = dict[str, Any]

ATTENTION_RANK = {
    "name": "attention-rank",
    "version": 1,
    "parameters": {
        "head_reduction": "mean",
        "positions": "keep",
        "query_rows": "instruction",
        "quota": "pooled",
        "score_layer": "previous",
    },
}
POOLING = {"name": "pooling", "version": 1, "parameters": {"positions": "keep"}}
DIVPRUNE = {"name": "divprune", "version": 1, "parameters": {"positions": "keep", "quota": "pooled"}}
RANDOM = {"name": "random", "version": 1, "parameters": {"quota": "pooled", "seed": 7}}


def searched() -> Document:
    """A document of a G-Search study with its measurement."""
    return {
        "format": "keep-rate-schedule",
        "format_version": 1,
        "model": {
            "id": "tiny-llava",
            "revision": "main",
            "architecture": "LlavaForConditionalGeneration",
            "decoder_layers": 6,
            "vision_layers": 2,
            "config_digest": "sha256:" + "1f" * 32,
        },
        "decoder": {
            "keep_rates": [1.0, 1.0, 0.375, 0.375, 0.1, 1e-05],
            "rule": copy.deepcopy(ATTENTION_RANK),
            "entry_rule": None,
        },
        "vision": None,
        "provenance": {
            "study": "quickstart",
            "algorithm": "g-search",
            "algorithm_parameters": {"first_layer": 3, "stride": 3, "penalty": 0.01, "sampler": "gp"},
            "search_data_digest": "sha256:" + "2a" * 32,
            "validation_data_digest": "sha256:" + "3b" * 32,
            "search_samples": 500,
            "validation_samples": 1000,
            "seed": 0,
            "software": {"scheduler-search": "0.1.0", "torch": "2.13.0"},
            "created": "2026-01-31T12:00:00Z",
        },
        "measured": {
            "metric": "exact-match",
            "samples": 1000,
            "reduced": {"score": 0.981, "standard_error": 0.0043},
            "unreduced": {"score": 0.987, "standard_error": 0.0036},
            "difference": {"mean": -0.006, "interval": [-0.0118, -0.0002]},
            "tflops": {"formula": "prefill", "reduced": 0.00041, "unreduced": 0.00093},
            "kv_cache_ratio": 0.61,
            "vision_kv_cache_ratio": 0.475,
            "prefill_milliseconds": {"device": "cpu", "reduced": 12.5, "unreduced": 25.0},
            "baselines": [
                {
                    "name": "uniform",
                    "rule": "attention-rank",
                    "score": 0.902,
                    "difference": {"mean": 0.079, "interval": [0.061, 0.097]},
                    "flops_ratio": 1.0,
                    "beaten": True,
                }
            ],
        },
    }


def unvalidated() -> Document:
    document = searched()
    document["provenance"] |= {"validation_data_digest": None, "validation_samples": 0}
    document["measured"] = None
    return document


def entry() -> Document:
    document = unvalidated()
    document["decoder"] |= {"keep_rates": [0.25] * 6, "entry_rule": copy.deepcopy(POOLING)}
    document["model"]["id"] = "llava-hf/llava-1.5-7b-hf"
    return document


def multilingual() -> Document:
    document = searched()
    document["provenance"]["study"] = "Größe, 視覚 \U0001f50d"
    document["provenance"]["algorithm_parameters"]["budget"] = {"as": "step", "layer": 2, "keep": 0.125}
    document["decoder"]["rule"] = copy.deepcopy(RANDOM)
    document["measured"]["prefill_milliseconds"] = None
    document["measured"]["baselines"] = []
    return document


VALID: dict[str, Callable[[], Document]] = {
    "searched": searched,
    "unvalidated": unvalidated,
    "entry": entry,
    "multilingual": multilingual,
}


def seal(document: Document) -> Document:
    """With both digests, computed here as the README tells another program to."""
    executed = {
        key: document[key] for key in ("format", "format_version", "model", "decoder", "vision") if key in document
    }
    document["digest"] = digest_of(executed)
    document["record_digest"] = digest_of(document)
    order = [*executed, "provenance", "digest", "record_digest", "measured"]
    return {key: document[key] for key in [*order, *document] if key in document}


def text_of(document: Document) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def changed(keys: str, value: object) -> str:
    """The searched document with one value replaced (or added) and the digests made right again."""
    document = searched()
    *parents, last = keys.split(".")
    at: Any = document
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[int(last) if isinstance(at, list) else last] = value
    return text_of(seal(document))


def without(keys: str) -> str:
    document = searched()
    *parents, last = keys.split(".")
    at: Any = document
    for key in parents:
        at = at[key]
    del at[last]
    return text_of(seal(document))


def edited(old: str, new: str) -> str:
    """The text of the searched document, edited behind the back of its digests."""
    text = text_of(seal(searched()))
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def forged() -> str:
    """A digest of something else, under a record digest that covers it."""
    document = searched() | {"digest": "sha256:" + "4c" * 32}
    return text_of(document | {"record_digest": digest_of(document)})


def edited_provenance(**fields: object) -> str:
    return changed("provenance", searched()["provenance"] | fields)


def rates(*values: object) -> str:
    return changed("decoder.keep_rates", list(values))


def rule(**fields: object) -> str:
    return changed("decoder.rule", copy.deepcopy(ATTENTION_RANK) | fields)


# name -> (text, fragment of the message, whether JSON Schema sees the fault)
INVALID: dict[str, tuple[str, str, bool]] = {
    "not-json": (edited('"format":', '"format"'), "must be JSON", False),
    "empty": ("", "must be JSON", False),
    "truncated": (text_of(seal(searched()))[:700], "must be JSON", False),
    "not-an-object": ("[]\n", "must be a JSON object, but got []", True),
    "nan": (edited("0.375", "NaN"), "numbers must be finite, but got NaN", False),
    "infinity": (edited("25.0", "Infinity"), "numbers must be finite, but got Infinity", False),
    "overflow": (edited("25.0", "1e999"), "numbers must be finite, but got 1e999", False),
    "duplicate-key": (edited('"vision": null', '"vision": null,\n  "vision": null'), "twice, but got 'vision'", False),
    "duplicate-key-deep": (edited('"seed": 0', '"seed": 0, "seed": 0'), "twice, but got 'seed'", False),
    "lone-surrogate": (edited('"quickstart"', '"\\ud800"'), "must be Unicode", False),
    "format-missing": (without("format"), "key 'format' is missing", True),
    "format-unknown": (changed("format", "keep-rates"), "format must be 'keep-rate-schedule'", True),
    "version-missing": (without("format_version"), "key 'format_version' is missing", True),
    "version-unknown": (changed("format_version", 2), "format_version must be 1, but got 2", True),
    "version-text": (changed("format_version", "1"), "format_version must be 1, but got '1'", True),
    "version-boolean": (changed("format_version", True), "format_version must be 1, but got True", True),
    "unknown-key": (changed("comment", "hello"), "key 'comment' is unknown", True),
    "unknown-key-model": (changed("model.path", "/models/x"), "key 'model.path' is unknown", True),
    "unknown-key-decoder": (changed("decoder.keep_ratio", 0.5), "key 'decoder.keep_ratio' is unknown", True),
    "unknown-key-measured": (changed("measured.latency", 0.5), "key 'measured.latency' is unknown", True),
    "missing-vision": (without("vision"), "key 'vision' is missing", True),
    "missing-measured": (without("measured"), "key 'measured' is missing", True),
    "missing-rule": (without("decoder.rule"), "key 'decoder.rule' is missing", True),
    "missing-entry-rule": (without("decoder.entry_rule"), "key 'decoder.entry_rule' is missing", True),
    "missing-created": (without("provenance.created"), "key 'provenance.created' is missing", True),
    "missing-digest": (edited('  "digest"', '  "digests"'), "key 'digests' is unknown", True),
    "rate-text": (rates(1.0, 1.0, "0.5", 0.5, 0.1, 0.0), "decoder.keep_rates.2: must be a valid number", True),
    "rate-boolean": (rates(True, 1.0, 0.5, 0.5, 0.1, 0.0), "decoder.keep_rates.0: must be a valid number", True),
    "rate-null": (rates(1.0, 1.0, None, 0.5, 0.1, 0.0), "decoder.keep_rates.2: must be a valid number", True),
    "rate-above-one": (rates(1.5, 1.0, 0.5, 0.5, 0.1, 0.0), "keep_rates.0: must be less than or equal to 1", True),
    "rate-negative": (rates(1.0, 1.0, 0.5, 0.5, 0.1, -0.1), "keep_rates.5: must be greater than or equal to 0", True),
    "rates-empty": (rates(), "decoder.keep_rates: ", True),
    "rates-object": (changed("decoder.keep_rates", {"1": 1.0}), "decoder.keep_rates: must be a valid list", True),
    "rates-increasing": (rates(1.0, 1.0, 0.5, 0.6, 0.1, 0.0), "must not increase", False),
    "rates-too-few": (rates(1.0, 1.0, 0.5), "one keep rate for each of the 6 decoder layers, but got 3", False),
    "rates-too-many": (rates(*[1.0] * 7), "one keep rate for each of the 6 decoder layers, but got 7", False),
    "entry-rule-missing": (rates(0.5, 0.5, 0.5, 0.5, 0.1, 0.0), "needs an entry rule, but got 0.5", False),
    "rule-unknown": (rule(name="attention-rang"), "did you mean 'attention-rank'?", False),
    "rule-version-unknown": (rule(version=2), "known in version 1, but got version 2", False),
    "rule-version-zero": (rule(version=0), "decoder.rule.version: must be greater than or equal to 1", True),
    "rule-elsewhere": (changed("decoder.rule", DIVPRUNE), "rule 'divprune' acts only at entry", False),
    "entry-rule-elsewhere": (changed("decoder.entry_rule", ATTENTION_RANK), "acts only at decoder", False),
    "parameter-unknown": (
        rule(parameters=ATTENTION_RANK["parameters"] | {"temperature": 1.0}),  # type: ignore[operator]
        "takes only its declared parameters",
        False,
    ),
    "parameter-missing": (rule(parameters={"head_reduction": "mean"}), "needs all of its parameters", False),
    "parameter-value": (
        rule(parameters=ATTENTION_RANK["parameters"] | {"query_rows": "first"}),  # type: ignore[operator]
        "must be one of 'instruction', 'last', 'all', but got 'first'",
        False,
    ),
    "parameter-type": (
        changed("decoder.rule", RANDOM | {"parameters": {"seed": 0.5}}),
        "must be of type int, but got 0.5",
        False,
    ),
    "parameter-list": (rule(parameters={"head_reduction": ["mean"]}), "decoder.rule.parameters.head_reduction", True),
    "model-path": (changed("model.id", "/models/tiny-llava"), "not a path, but got '/models/tiny-llava'", False),
    "model-id-empty": (changed("model.id", ""), "model.id: string should have at least 1 character", True),
    "model-layers-zero": (changed("model.decoder_layers", 0), "model.decoder_layers: must be greater", True),
    "model-layers-fraction": (
        changed("model.decoder_layers", 6.5),
        "model.decoder_layers: must be a valid integer",
        True,
    ),
    "config-digest-malformed": (
        changed("model.config_digest", "1f1f"),
        "model.config_digest: string should match",
        True,
    ),
    "vision-length": (
        changed("vision", {"keep_rates": [1.0], "rule": RANDOM}),
        "rule 'random' acts only at decoder and entry",
        False,
    ),
    "vision-list": (changed("vision", []), "vision: must be a valid dictionary", True),
    "digest-wrong": (edited("0.375", "0.376"), "digest must be that of what is executed", False),
    "digest-forged": (forged(), "digest must be that of what is executed", False),
    "digest-malformed": (edited('"digest": "sha256:', '"digest": "md5:'), "digest: string should match", True),
    "record-digest-wrong": (edited("0.981", "0.991"), "record_digest must be that of the whole document", False),
    "record-digest-provenance": (
        edited('"seed": 0', '"seed": 1'),
        "record_digest must be that of the whole document",
        False,
    ),
    "created-local-time": (
        changed("provenance.created", "2026-01-31T12:00:00+01:00"),
        "provenance.created: string",
        True,
    ),
    "created-impossible": (changed("provenance.created", "2026-02-30T12:00:00Z"), "provenance.created: ", False),
    "samples-negative": (changed("provenance.search_samples", -1), "search_samples: must be greater", True),
    "seed-text": (changed("provenance.seed", "0"), "provenance.seed: must be a valid integer", True),
    "validation-contradiction": (
        changed("provenance.validation_samples", 0),
        "exactly where validation_samples is 0",
        False,
    ),
    "measured-without-validation": (
        edited_provenance(validation_samples=0, validation_data_digest=None),
        "measured must be null without a validation split",
        False,
    ),
    "score-above-one": (changed("measured.reduced.score", 98.1), "measured.reduced.score: must be less", True),
    "error-negative": (changed("measured.reduced.standard_error", -0.1), "standard_error: must be greater", True),
    "interval-reversed": (changed("measured.difference.interval", [0.1, -0.1]), "low <= high", False),
    "interval-short": (changed("measured.difference.interval", [0.1]), "measured.difference.interval", True),
    "beaten-number": (changed("measured.baselines.0.beaten", 1), "baselines.0.beaten: must be a valid boolean", True),
}


def main() -> None:
    """Write everything anew."""
    for kind in ("valid", "invalid"):
        shutil.rmtree(FOLDER / kind, ignore_errors=True)
        (FOLDER / kind).mkdir(parents=True)
    # As a writer without a float type prints it: 1.0 is 1. The digests are those of the floats.
    foreign = text_of(seal(searched())).replace("1.0,", "1,").replace("25.0", "25")
    (FOLDER / "valid" / "written-elsewhere.json").write_text(foreign, encoding="utf-8")
    for name, build in VALID.items():
        (FOLDER / "valid" / f"{name}.json").write_text(text_of(seal(build())), encoding="utf-8")
    faults = {}
    for name, (text, message, seen) in INVALID.items():
        (FOLDER / "invalid" / f"{name}.json").write_text(text, encoding="utf-8")
        faults[name] = {"message": message, "schema_sees_it": seen}
    (FOLDER / "faults.json").write_text(json.dumps(faults, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
