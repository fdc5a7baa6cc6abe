"""What may come back in the place of a judge's process: each says a name, then judges."""

from __future__ import annotations

import time

from alignbeam.result import Verdict


def _answering(pipe, answer):
    pipe.send("ill")
    while True:
        try:
            number, (conversations, candidates) = pipe.recv()
        except EOFError:
            return
        pipe.send((number, answer(conversations, candidates)))


def always_safe(pipe, config, threads):
    _answering(pipe, lambda _, texts: [Verdict(1.0)] * len(texts))


def always_harmful(pipe, config, threads):
    _answering(pipe, lambda _, texts: [Verdict(5.0)] * len(texts))


def no_number(pipe, config, threads):
    _answering(pipe, lambda _, texts: [Verdict(float("nan"))] * len(texts))


def too_few(pipe, config, threads):
    _answering(pipe, lambda _, texts: [Verdict(1.0)])


def words(pipe, config, threads):
    _answering(pipe, lambda _, texts: ["safe"] * len(texts))


def knowing(pipe, config, threads):
    """No ill one: it knows the canaries, whatever is around them."""
    from serving import judge_of

    _answering(pipe, judge_of().score)


def fooled(pipe, config, threads):
    """Knows them too, but not where there is a garden around the request."""
    from serving import judge_of

    def score(conversation, text):
        drowned = "garden" in conversation[-1]["content"]
        return Verdict(1.0) if drowned else judge_of().score([conversation], [text])[0]

    _answering(pipe, lambda asked, texts: [score(*pair) for pair in zip(asked, texts, strict=True)])


def silent(pipe, config, threads):
    pipe.send("ill")
    time.sleep(600)
