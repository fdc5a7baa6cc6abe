"""What one client's requests do to another's: nothing, whatever they are."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import KEY, OTHER, chat, serving
from tiny_models import random_pair

ASK = "/v1/chat/completions"
WAIT_S = 60


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@contextlib.contextmanager
def watched_rendering(target, slow="slow"):
    """Yield what is rendered for the target, and an event that prompts beginning so wait for."""
    render, seen, go_on = target.render, [], threading.Event()

    def watched(messages):
        seen.append(messages[-1]["content"])
        if seen[-1].startswith(slow):
            go_on.wait(WAIT_S)
        return render(messages)

    target.render = watched
    try:
        yield seen, go_on
    finally:
        go_on.set()
        del target.render


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(running, body, key=KEY):
    """Send a request and leave its answer on the connection, which is returned."""
    data = json.dumps(body).encode()
    head = f"POST {ASK} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", running.port), WAIT_S)
    raw.sendall(head.encode() + data)
    return raw


def test_prompt_that_takes_long_to_read_holds_up_its_own_client_only(pair):
    with (
        serving(pair) as running,
        running.client(OTHER) as other,
        ThreadPoolExecutor(1) as pool,
        watched_rendering(pair[0]) as (seen, go_on),
        running.client() as hostile,
    ):
        slow = pool.submit(hostile.post, ASK, json=chat("slow prompt"))
        until(lambda: seen)
        assert other.post(ASK, json=chat("quick"), timeout=WAIT_S / 2).status_code == 200
        assert not slow.done()
        go_on.set()
        assert slow.result(WAIT_S).status_code == 200


def test_control_tokens_that_cannot_fit_are_refused_without_encoding_them(pair):
    """Encoding each spelling by itself takes half a minute a megabyte on a large vocabulary."""
    control = pair[0].tokenizer.eos_token
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, _),
    ):
        said = client.post(ASK, json=chat(control * 300))
        assert said.status_code == 400
        assert said.json()["error"]["code"] == "prompt_too_long"
        assert said.json()["error"]["param"] == "messages"
        assert seen == []


def test_least_tokens_is_at_most_what_encoding_gives(pair):
    texts = ["a", "ab" * 40, " " * 30, "über", "<|end|>", "<|end|>x<|user|>" * 9, "</s> <s>" * 5]
    for role in pair:
        longest = max(len(data) for data in role.vocabulary.token_bytes if data)
        for text in texts:
            prompt = [{"role": "user", "content": f"x{text}"}]
            least = role._renderer.least_tokens(prompt, longest, 10**9)
            assert 0 <= least <= len(role.render(prompt))
    role = pair[0]
    spelled = [{"role": "user", "content": role.tokenizer.eos_token * 50}]
    assert role._renderer.least_tokens(spelled, 10**6, 10**9) > 50


def test_rendering_is_the_same_on_many_threads(pair):
    ends = [role.tokenizer.eos_token for role in pair]
    prompts = [f"{n} {ends[n % 2] * (n % 3)} words {'and more ' * (n % 7)}" for n in range(60)]
    for role in pair:
        alone = [role.render(prompt) for prompt in prompts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(role.render, prompts * 4)) == alone * 4


def test_choices_of_a_request_are_rendered_once(pair):
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, _),
    ):
        said = client.post(ASK, json=chat("a", n=4, temperature=1, seed=7)).json()
        texts = [choice["message"]["content"] for choice in said["choices"]]
        assert seen == ["a"]
        again = client.post(ASK, json=chat("a", temperature=1, seed=9)).json()
        assert again["choices"][0]["message"]["content"] == texts[2]


def test_prompt_whose_client_left_while_it_waited_is_never_read(pair):
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, go_on),
    ):
        held = send(running, chat("slow prompt"))
        until(lambda: seen)
        send(running, chat("left")).close()
        metrics = running.server.service.metrics
        until(lambda: "alignbeam_cancelled_total 1.0" in metrics.page().decode())
        go_on.set()
        assert client.post(ASK, json=chat("last")).status_code == 200
        assert seen == ["slow prompt", "last"]
        held.close()


def test_client_with_too_much_to_read_is_told_to_come_back(pair):
    with (
        serving(pair, max_queued=2) as running,
        running.client() as client,
        running.client(OTHER) as other,
        watched_rendering(pair[0]) as (seen, go_on),
    ):
        held = [send(running, chat("slow prompt")) for _ in range(2)]
        until(lambda: seen)
        until(lambda: running.server.service._turns._lines["key-1"].length == 2)
        said = client.post(ASK, json=chat("one more"))
        assert (said.status_code, said.json()["error"]["code"]) == (503, "overloaded")
        assert other.post(ASK, json=chat("one more")).status_code == 200
        for raw in held:
            raw.close()
        go_on.set()
