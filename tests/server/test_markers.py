"""No byte of a candidate that did not pass leaves the server or is written down, whatever is asked.

The target writes words that nothing else is spelled with, and the judge, whose verdicts are drawn
too, keeps what it read: so every byte that left can be searched for what must not be in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marked import WORDS, marked_role, words_of
from serving import chat, judge_of, serving

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import GateConfig
from alignbeam.errors import AlignBeamError
from alignbeam.judge import CallableJudge
from alignbeam.server.logs import JsonFormatter

#: 2,000 in CI, and by ALIGNBEAM_DRAWS=2000.
DRAWS = int(os.environ.get("ALIGNBEAM_DRAWS") or (2000 if os.environ.get("CI") else 200))
BEAM = BeamConfig(mix_steps=2, beams=2, max_new_tokens=10)
#: Whatever else an operator may have switched on, by the name of the server.
OPERATOR = {
    "raise": {"on_unsafe": "raise"},
    "early": {"early_every": 2, "unsteered": True, "early_safe": 1.5},
    "least": {"selection": "least_steered", "unsteered": True, "fallback": "prefix"},
    "gated": {"stop": ("QZZ",), "stop_ends": False},
}
GATE = GateConfig(use=("divergence", "agreement"), divergence=0.5, combine="any")
NAMES = (1, 3, 8, "shadow", *OPERATOR)

#: What a judge may do with a candidate; only the first two let it pass.
PASSED = (1.0, 2.4)
VERDICTS = (*PASSED, 2.6, 5.0, float("nan"), 9.0, "raise", "quote", "foreign")


class Judged:
    """A judge that does what it is told, and knows which words passed and which did not."""

    def __init__(self):
        self.texts, self.verdicts, self.salt = [], VERDICTS, 0

    def begin(self, verdicts, salt):
        self.texts, self.verdicts, self.salt = [], verdicts, salt

    def __call__(self, request, text):
        said = self.verdicts[zlib.crc32(f"{self.salt}{text}".encode()) % len(self.verdicts)]
        self.texts.append((text, said in PASSED))
        if said == "raise":
            raise RuntimeError(f"cannot judge {text}")
        if said == "quote":
            raise TimeoutError(f"only {text}")
        return text if said == "foreign" else said

    def secret(self):
        """Words that stand in no text that passed."""
        found = {True: set(), False: set()}
        for text, passed in self.texts:
            found[passed] |= words_of(text)
        return found[False] - found[True]


class Watched:
    """A server, everything that it writes, and its judge."""

    def __init__(self, running, judged, audit, log):
        self.running, self.judged, self._audit, self._log = running, judged, audit, log
        self._read = 0
        self.client = running.client()

    def written(self):
        """What was written since the last look: the audit log's bytes, the logs', the series."""
        with self._audit.open("rb") as file:
            file.seek(self._read)
            audit = file.read()
        self._read += len(audit)
        log = self._log.getvalue()
        self._log.seek(0)
        self._log.truncate()
        return audit.decode() + log + self.running.metrics()

    def settle(self):
        """Wait for what goes on in the background."""
        while self.running.server.service._shadows:
            time.sleep(0.001)


@pytest.fixture(scope="module")
def pair():
    return marked_role("target", seed=1), marked_role("anchor", seed=2)


@pytest.fixture(scope="module")
def servers(pair, tmp_path_factory):
    """Servers by the size of their pieces, and one in shadow mode; over one pair, in turns."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("alignbeam", "uvicorn")]
    with contextlib.ExitStack() as stack:
        made = {}
        for name in (*NAMES, "shadow in the open"):
            judged = Judged()
            path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
            running = stack.enter_context(
                serving(
                    pair,
                    judge_of(judged),
                    BEAM.replace(**OPERATOR.get(name, {})),
                    GATE if name == "gated" else None,
                    release="chunked" if name in (3, 8, "gated") else "full",
                    chunk_tokens=name if isinstance(name, int) else 2,
                    allow=("alpha", "mix_steps", "beams", "explain", "policy"),
                    max_beams=3,
                    max_mix_steps=6,
                    max_choices=4,
                    frame_tokens=1,
                    audit_file=str(path),
                    audit_text=name == "shadow in the open",
                    shadow=str(name).startswith("shadow"),
                    playground=True,
                )
            )
            made[name] = Watched(running, judged, path, log)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        yield made
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


@st.composite
def asked(draw):
    """Route and body of a request."""
    prompt = st.sampled_from(["Hello!", "b", "Tell me more, please.", "QQ"])
    body = {
        "temperature": draw(st.sampled_from([0, 0.7, 1.5])),
        "seed": draw(st.integers(0, 5)),
        "max_tokens": draw(st.integers(1, 10)),
    }
    route = draw(st.sampled_from(["chat", "completions", "playground"]))
    beams, steps = draw(st.integers(2, 4)), draw(st.integers(1, 7))
    alpha = draw(st.sampled_from([0.5, 0.7, 1.0]))
    if route == "playground":
        return "/playground", {
            "prompt": draw(prompt), "alpha": alpha, "mix_steps": steps, "beams": beams,
            "max_tokens": body["max_tokens"],
        }  # fmt: skip
    body["n"] = draw(st.sampled_from([1, 1, 2, 3]))
    stops = st.sampled_from([" ", "Q", "Z", "KQ", "XX", *WORDS[:4]])
    body["stop"] = draw(st.lists(stops, max_size=2, unique=True))
    body["stream"] = draw(st.booleans())
    if body["stream"]:
        body["stream_options"] = {"include_usage": draw(st.booleans())}
    own = {"explain": draw(st.booleans())}
    if draw(st.booleans()):
        own |= {"alpha": alpha, "beams": beams, "mix_steps": steps}
    if draw(st.booleans()):
        own["policy"] = draw(st.sampled_from(["full", "chunked"]))
    body["alignbeam"] = own
    if route == "completions":
        prompts = draw(st.lists(prompt, min_size=1, max_size=2))
        return "/v1/completions", {"model": "alignbeam", "prompt": prompts, **body}
    return "/v1/chat/completions", chat(draw(prompt), **body)


def everything(said):
    """The status, the headers and the body of a reply, as one text."""
    headers = b"\n".join(b": ".join(pair) for pair in said.headers.raw)
    return f"{said.status_code}\n{headers.decode('latin-1')}\n\n{said.text}"


def unjudged(route, said, shadow):
    """What an operator lets out that no judge was asked about: the target's own answer."""
    if said.status_code != 200:
        return ""
    if route == "/playground":
        return said.json()["target"]
    if not shadow:
        return ""
    lines = [line[6:] for line in said.text.splitlines() if line.startswith("data: {")]
    choices = [c for line in lines or [said.text] for c in json.loads(line)["choices"]]
    texts = {}
    for c in choices:
        told = c.get("text") or (c.get("delta") or c.get("message") or {}).get("content") or ""
        texts[c["index"]] = texts.get(c["index"], "") + told
    return "\n".join(texts.values())


def leaked(server, route, body, verdicts, salt, shadow):
    """Ask, and return the secret words, and those of them that left or were written."""
    server.judged.begin(verdicts, salt)
    said = server.client.post(route, json=body)
    server.settle()
    seen = everything(said) + server.written()
    given = words_of(json.dumps(body)) | words_of(unjudged(route, said, shadow))
    secret = server.judged.secret() - given
    return secret, secret & words_of(seen)


def test_no_word_of_a_candidate_that_did_not_pass_leaves(servers):
    kept = 0

    @settings(max_examples=DRAWS)
    @given(
        request=asked(),
        name=st.sampled_from(NAMES),
        verdicts=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=6),
        salt=st.integers(0, 1 << 16),
    )
    def ask(request, name, verdicts, salt):
        nonlocal kept
        secret, found = leaked(servers[name], *request, verdicts, salt, name == "shadow")
        assert found == set()
        kept += len(secret)

    ask()
    assert kept > 2 * DRAWS  # there was something to find


def test_no_word_of_a_candidate_that_did_not_pass_is_in_what_a_batch_tells(pair):
    kept = 0

    @settings(max_examples=DRAWS)
    @given(
        prompts=st.lists(st.sampled_from(["Hello!", "b", "QQ"]), min_size=1, max_size=3),
        own=st.fixed_dictionaries(
            {
                "beams": st.integers(1, 4),
                "mix_steps": st.integers(0, 4),
                "max_new_tokens": st.integers(4, 10),
                "temperature": st.sampled_from([0.0, 1.5]),
                "seed": st.integers(0, 5),
                "stop": st.sampled_from([(), ("Z",), ("XX", " ")]),
                "stop_ends": st.booleans(),
                "unsteered": st.booleans(),
                "selection": st.sampled_from(["safest", "least_steered"]),
                "early_every": st.integers(0, 2),
                "on_unsafe": st.sampled_from(["refuse", "raise"]),
            }
        ),
        verdicts=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=6),
        salt=st.integers(0, 1 << 16),
    )
    def ask(prompts, own, verdicts, salt):
        nonlocal kept
        judged = Judged()
        judged.begin(verdicts, salt)
        beam = AlignBeam(*pair, CallableJudge(lambda m, text: judged("", text), "test"))
        told = [
            # An error is for use at home: a judge's own words are in it.
            "" if isinstance(one, AlignBeamError) else f"{one.text}\n{json.dumps(one.public())}"
            for one in beam.outcomes(prompts, {**own, "threshold": 2.5})
        ]
        secret = judged.secret()
        assert secret & words_of("\n".join(told)) == set()
        kept += len(secret)

    ask()
    assert kept > 2 * DRAWS


def test_where_an_operator_asks_for_texts_they_are_found(servers):
    body = chat(alignbeam={"explain": True})
    secret, found = leaked(
        servers["shadow in the open"], "/v1/chat/completions", body, [5.0], 0, True
    )
    assert found == secret != set()
