"""Nothing of a candidate that did not pass leaves, whatever is asked for and whatever stops it."""

from __future__ import annotations

import json
import re

import pytest
from serving import chat, judge_of, serving
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.judge import CallableJudge

BEAM = BeamConfig(mix_steps=4, beams=2, max_new_tokens=24)


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def beams_of(pair, prompt="Hello!", **settings):
    """What the target and the anchor make of a prompt, whoever judges."""
    judge = CallableJudge(lambda messages, text: 1.0, "lenient")
    return AlignBeam(*pair, judge, BEAM.replace(**settings)).generate(prompt).candidates


def told(body):
    """A reply, or the frames of a stream, without what differs each time."""
    lines = body.text.splitlines()
    if lines[0].startswith("data: "):
        frames = [json.loads(line[6:]) for line in lines if line[6:] not in ("", "[DONE]")]
    else:
        frames = [json.loads(body.text)]
    for frame in frames:
        for name in ("id", "created"):
            frame.pop(name)
        for choice in frame["choices"]:
            choice.get("alignbeam", {}).pop("timings_ms", None)
    return frames


def steps_of(server):
    """How many steps a server has decoded."""
    page = server.server.service.metrics.page().decode()
    return float(re.search(r"^alignbeam_decode_steps_total (.+)", page, re.MULTILINE)[1])


def stops_of(text, places):
    """Pieces of a text, without what stands for bytes that are no character."""
    pieces = {text[n : n + size] for n in places for size in (1, 2, 5)}
    return sorted(p for p in pieces if p and "\N{REPLACEMENT CHARACTER}" not in p)


# Stop strings ----------------------------------------------------------------------------------


def test_judge_reads_the_stop_string_and_the_rest_of_its_token(pair):
    read = []
    judge = CallableJudge(lambda messages, text: read.append(text) or 1.0, "reads")
    beam = AlignBeam(*pair, judge, BEAM)
    whole = beam.generate("Hello!").candidates
    for stop in stops_of(whole[0].text, range(12)):
        read.clear()
        result = beam.generate("Hello!", stop=(stop,))
        assert read == [c.judged_text for c in result.candidates]
        for before, after in zip(whole, result.candidates, strict=True):
            assert after.text == before.text.split(stop)[0]
            assert before.text.startswith(after.judged_text)
            assert after.token_ids == before.token_ids[: len(after.token_ids)]
            if after.finish_reason == "stop_string":
                assert after.beyond.startswith(stop)
                data = b"".join(beam.target.bytes_of(i) for i in after.token_ids)
                data = data.removeprefix(beam.target.opening)
                assert after.judged_text == data.decode(errors="replace")


@pytest.mark.parametrize("how", ["whole", "stream", "chunked"])
@pytest.mark.parametrize("known", [0, 6])
def test_stop_string_says_nothing_of_text_that_is_withheld(pair, how, known):
    """A client that guesses what comes next is told the same for right and wrong guesses."""
    texts = [c.text for c in beams_of(pair, "b")]

    def judge(request, text):  # the beginning alone would pass
        return 1.0 if any(t.startswith(text) and len(text) <= known for t in texts) else 5.0

    fields = {"stream": how != "whole", "alignbeam": {"explain": True}}
    if how == "chunked":
        fields["alignbeam"]["policy"] = "chunked"
    guesses = {
        g for t in texts for g in stops_of(t, [known]) if all(g not in u[:known] for u in texts)
    }
    assert guesses
    with (
        serving(pair, judge_of(judge), BEAM, allow=("explain", "policy"), chunk_tokens=2) as server,
        server.client() as client,
    ):
        for guess in guesses:
            # As long, for a growing answer is held back by the length of a stop string.
            bodies = [chat("b", stop=[g], **fields) for g in (guess, "#" * len(guess.encode()))]
            right, wrong = [told(client.post("/v1/chat/completions", json=b)) for b in bodies]
            assert right[-1]["choices"][0]["finish_reason"] == "content_filter"
            assert right == wrong


@pytest.mark.parametrize("how", ["whole", "early", "stream", "chunked"])
def test_stop_string_changes_nothing_but_the_cut(pair, how):
    """Neither what is judged and chosen, nor how much is decoded (which time and metrics show)."""
    read = []

    def judge(request, text):  # the longer the better: cutting one would make another the best
        read.append(text)
        return 4.0 - len(text.encode()) / 200

    streamed = how in ("stream", "chunked")
    fields = {"stream": streamed, "alignbeam": {"explain": True}}
    if how == "chunked":
        fields["alignbeam"]["policy"] = "chunked"
    early = {"early_every": 6, "early_safe": 3.9} if how == "early" else {}
    config = BEAM.replace(threshold=4.5, tie_margin=0, beams=3, **early)
    found = []
    with (
        serving(
            pair, judge_of(judge), config, allow=("explain", "policy"), chunk_tokens=4
        ) as server,
        server.client() as client,
    ):
        texts = [c.text for c in beams_of(pair, "b", beams=3)]
        pieces = [s for t in texts for s in stops_of(t, [3])]
        openings = [[t.strip("\N{REPLACEMENT CHARACTER}")[:1] for t in texts]]  # nothing is left
        stops = [[], *openings, *([s] for s in pieces[::2]), pieces[1::3]]
        for stop in stops:
            read.clear()
            steps = steps_of(server)
            said = told(client.post("/v1/chat/completions", json=chat("b", stop=stop, **fields)))
            choices = [c for frame in said for c in frame["choices"]]
            told_text = "".join(
                c["delta" if streamed else "message"].get("content", "") for c in choices
            )
            about = choices[-1]["alignbeam"]
            whole = texts[about["chosen"]]
            places = (whole.find(s) for s in stop if s in whole)
            assert told_text == whole[: min(places, default=None)]
            # How far a growing answer is when it is read depends on when the judge is free.
            judged = None if how == "chunked" else set(read)
            found.append((judged, about["chosen"], steps_of(server) - steps))
            tokens = [c.get("tokens") for c in about["candidates"]]
            assert tokens == [24] * 3 or how in ("chunked", "early")
    assert len(found) > 5
    assert all(one == found[0] for one in found)


def test_stop_strings_end_the_decoding_where_the_operator_says_so(pair):
    (text, *_) = [c.text for c in beams_of(pair, "b")]
    spent = []
    for ends in (True, False):
        with (
            serving(pair, judge_of(), BEAM.replace(beams=1), stop_ends=ends) as server,
            server.client() as client,
        ):
            said = client.post("/v1/chat/completions", json=chat("b", stop=[text[2:4]])).json()
            assert said["choices"][0]["message"]["content"] == text[:2]
            spent.append(steps_of(server))
    assert spent[0] < spent[1] <= 24


def test_stop_strings_of_a_request_leave_the_operators_own(pair):
    (text, *_) = [c.text for c in beams_of(pair, "b")]
    own, asked = text[2:4], text[6:8]
    with (
        serving(pair, judge_of(), BEAM.replace(beams=1, stop=(own,))) as server,
        server.client() as client,
    ):
        said = client.post("/v1/chat/completions", json=chat("b", stop=[asked])).json()
        assert said["choices"][0]["message"]["content"] == text[:2]


def test_steps_end_where_the_text_ends(pair):
    """A token's bytes after the stop string, and the stop string's own, stay in."""
    whole = beams_of(pair)[0].text
    with serving(pair, judge_of(), BEAM) as server, server.client() as client:
        for stop in stops_of(whole, range(1, 8)):
            body = chat(stop=[stop], alignbeam={"explain": True})
            (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
            shown = "".join(step["text"] for step in choice["alignbeam"]["steps"])
            assert choice["message"]["content"].startswith(shown)


# Chunked release -------------------------------------------------------------------------------


def test_chunked_explanation_and_audit_are_of_the_beam_that_was_released(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    read = []

    def judge(request, text):  # beam 0 is read first, and rejected
        read.append(text)
        return 5.0 if text.startswith(read[0]) else 1.0

    with (
        serving(pair, judge_of(judge), BEAM, release="chunked", chunk_tokens=6,
                audit_file=str(path), audit_text=True) as server,
        server.client() as client,
    ):  # fmt: skip
        said = client.post("/v1/chat/completions", json=chat(alignbeam={"explain": True})).json()
    (choice,) = said["choices"]
    about, text = choice["alignbeam"], choice["message"]["content"]
    assert about["chosen"] == 1
    assert about["candidates"][0] == {"passed": False, "failure": None}
    assert text.startswith("".join(step["text"] for step in about["steps"]))
    assert len(about["steps"]) == BEAM.mix_steps
    records = [json.loads(line) for line in path.read_text().splitlines()]
    (answer,) = [r for r in records if r["kind"] == "answer"]
    assert answer["chosen"] == 1
    assert [c["score"] for c in answer["candidates"]] == [5.0, 1.0]
    assert [c["text"] for c in answer["candidates"]] == [read[0], text]
