"""Drives a running server with the official `openai` package: BASE_URL MODEL CHAT(yes|no).

Fails at the first thing that is not as that package expects it.
"""

import sys

import openai

base_url, model, chat = sys.argv[1:4]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)

assert [m.id for m in client.models.list()] == [model]
assert client.models.retrieve(model).id == model

# Text: whole, streamed, seeded, stopped, echoed, with token ids and several at once.
ask = dict(model=model, prompt="Once upon a time", max_tokens=24)
greedy = client.completions.create(**ask, temperature=0, logprobs=3)
assert greedy.usage.completion_tokens <= 24 and greedy.choices[0].text
lp = greedy.choices[0].logprobs
assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == greedy.usage.completion_tokens
for token, logprob, top in zip(lp.tokens, lp.token_logprobs, lp.top_logprobs):
    assert abs(max(top.values()) - logprob) < 1e-6 and abs(top[token] - logprob) < 1e-6
pieces = list(client.completions.create(**ask, temperature=0, stream=True, stream_options={"include_usage": True}))
assert "".join(c.text for p in pieces for c in p.choices) == greedy.choices[0].text
assert pieces[-1].usage == greedy.usage
seeded = [client.completions.create(**ask, seed=5, n=3).choices for _ in range(2)]
assert [c.text for c in seeded[0]] == [c.text for c in seeded[1]]
assert len({c.text for c in seeded[0]}) > 1
text = greedy.choices[0].text
stop = text[len(text) // 2 : len(text) // 2 + 3]
stopped = client.completions.create(**ask, temperature=0, stop=[stop]).choices[0]
assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop"
echo = client.completions.create(**{**ask, "max_tokens": 0}, echo=True, logprobs=1).choices[0]
assert echo.text == ask["prompt"] and echo.logprobs.token_logprobs[0] is None
assert all(x < 0 for x in echo.logprobs.token_logprobs[1:])
full = client.completions.create(**ask, temperature=0, echo=True, logprobs=1).choices[0]
assert full.text == ask["prompt"] + text
# Scoring the whole text again gives what sampling it reported.
again = client.completions.create(model=model, prompt=full.text, max_tokens=0, echo=True, logprobs=1).choices[0]
if again.logprobs.tokens == full.logprobs.tokens:
    assert again.logprobs.token_logprobs == full.logprobs.token_logprobs
many = client.completions.create(model=model, prompt=["One", "Two", "Three"], max_tokens=3, n=2)
assert [c.index for c in many.choices] == list(range(6))
ids = client.completions.create(model=model, prompt=[[1, 10, 11], [1, 12]], max_tokens=2)
assert ids.usage.prompt_tokens == 5

# Errors come as the package's own exceptions.
for error, change in [
    (openai.NotFoundError, {"model": "other"}),
    (openai.BadRequestError, {"temperature": -1}),
    (openai.BadRequestError, {"max_tokens": 10**6}),
    (openai.BadRequestError, {"extra_body": {"no_such_field": 1}}),
]:
    try:
        client.completions.create(**{**ask, **change})
    except error as e:
        assert e.body["message"]
    else:
        raise AssertionError(f"{change} was accepted")

if chat == "yes":
    ask = dict(model=model, messages=[{"role": "user", "content": "hello"}], max_completion_tokens=20)
    whole = client.chat.completions.create(**ask, temperature=0, logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    assert all(len(t.top_logprobs) == 2 for t in choice.logprobs.content)
    pieces = list(client.chat.completions.create(**ask, temperature=0, stream=True))
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == choice.message.content
    assert pieces[-1].choices[0].finish_reason == choice.finish_reason
    # The package's own assembly of a stream; it refuses to give out one that was cut by its length.
    with client.chat.completions.stream(**ask, temperature=0) as stream:
        content = [event.snapshot for event in stream if event.type == "content.delta"]
    assert content[-1] == choice.message.content
    tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}}]
    reply = client.chat.completions.create(**ask, tools=tools, tool_choice="auto").choices[0]
    assert reply.message.tool_calls is None or reply.message.tool_calls[0].function.name

print("the openai package agrees:", openai.__version__)
