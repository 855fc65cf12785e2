"""complete(): the tokens against transformers' own generation, scores, limits, streaming, ranking, stop rules."""

import functools
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

from common.command import InputError
from completion.complete import complete, complete_all, parses, rank
from completion.cursor import Cursor
from completion.engines.engine import Step
from completion.engines.torch_engine import TorchEngine, choose
from completion.prompt import Prompt, PromptEnd, read_prompt
from completion.settings import Completion, CompletionSettings

PROMPT = "def add(a, b):"


@pytest.fixture
def model(model):
    """The untrained model of conftest, changed so that it never ends a file. So no test depends on chance."""
    # The last norm's output, its bias aside, adds up to 0, so that the logit of a control word is always -320.
    model.gpt.transformer.ln_f.bias.data[:] = 1.0
    model.gpt.get_input_embeddings().weight.data[model.tokenizer.all_special_ids] = -10.0
    return model.eval()


@pytest.fixture
def engine(model):
    return TorchEngine(model)


def decoded(engine, ids, options):
    """Tokens and log-probabilities, position by position, after these ids."""
    steps = engine.stream([Prompt(ids, PromptEnd(engine.vocabulary))], options, set())
    while rows := list(islice(steps, options.candidates)):
        yield [step.token for step in rows], [step.log_prob for step in rows]


def test_greedy_tokens_are_those_of_generate(model, engine):
    ids = [model.control_id("python"), *model.tokenize(PROMPT)]
    expected = model.gpt.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=30, pad_token_id=0)
    steps = decoded(engine, ids, CompletionSettings(temperature=0))
    assert [tokens[0] for tokens, _ in islice(steps, 30)] == expected[0, len(ids) :].tolist()


def test_scores_are_the_models_own_and_the_first_candidate_is_greedy(model, engine):
    ids = [model.control_id("python"), *model.tokenize(PROMPT)]
    steps = list(islice(decoded(engine, ids, CompletionSettings(num_return_sequences=3, seed=1, temperature=2.0)), 10))
    for candidate in range(3):
        tokens = [step_tokens[candidate] for step_tokens, _ in steps]
        log_probs = model.gpt(torch.tensor([ids + tokens])).logits[0, :, : len(model.tokenizer)].log_softmax(-1)
        expected = [log_probs[len(ids) - 1 + place, token].item() for place, token in enumerate(tokens)]
        assert [step_scores[candidate] for _, step_scores in steps] == pytest.approx(expected, abs=1e-4)
    greedy = [tokens[0] for tokens, _ in steps]
    log_probs = model.gpt(torch.tensor([ids + greedy])).logits[0, :, : len(model.tokenizer)]
    likeliest = log_probs[len(ids) - 1 : -1].argmax(-1).tolist()
    assert greedy == likeliest


def test_a_seed_repeats_and_candidates_differ(engine):
    first, again, other = (
        complete(engine, PROMPT, num_return_sequences=3, seed=s, temperature=2.0, max_new_tokens=9) for s in (1, 1, 2)
    )
    assert first == again != other
    assert len({completion.text for completion in first}) == 3
    assert len(complete(engine, PROMPT, num_return_sequences=3, temperature=0, max_new_tokens=9)) == 1


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.0, 0.0, 1.0, 0.0]]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [
        choose(logits, torch.zeros(2, 0), CompletionSettings(temperature=1.0, top_p=1.0), generator)
        for _ in range(4000)
    ]
    shares = torch.cat(drawn, 1)[0].bincount() / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert all(row[1].item() == 2 for row in drawn)


def test_choose_keeps_to_top_k_top_p_and_penalty():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    none_seen = torch.zeros(1, 0, dtype=torch.long)

    def chosen(**settings):
        options = CompletionSettings(**{"temperature": 1.0, "top_p": 1.0} | settings)
        return {choose(logits, none_seen, options, generator).item() for _ in range(200)}

    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {0, 1}
    assert chosen(top_p=0.75) == {0, 1}
    assert chosen(top_p=0.01) == {0}
    assert chosen(temperature=0.01) == chosen(temperature=1e-60) == chosen(temperature=0) == {0}
    # The logits are negative: a penalty of 4 makes the first -2.8, below the second's -1.2.
    assert (
        choose(logits, torch.tensor([[0]]), CompletionSettings(temperature=0, repetition_penalty=4.0), generator).item()
        == 1
    )


def test_streamed_pieces_are_the_text_in_whole_characters(engine):
    for seed in range(3):  # an untrained model often cuts a character in two
        pieces = []
        settings = {"temperature": 5.0, "top_p": 1.0, "seed": seed, "max_new_tokens": 60}
        found = complete(engine, PROMPT, stop="none", on_text=pieces.append, **settings)
        assert found[0].text.startswith("".join(pieces))
        assert (
            not found[0].text.removeprefix("".join(pieces)).strip()
        )  # spaces at the end might have become part of a line break
        assert len(pieces) > 20
        assert 57 <= len(found[0].tokens) <= 60  # without the beginning of a character that was never complete


def speak(model, ids):
    """Make the model say these tokens over and over, when asked for the likeliest."""

    class Scripted(type(model.gpt)):
        @functools.wraps(type(model.gpt).forward)
        def forward(self, input_ids, **kwargs):
            output = super().forward(input_ids, **kwargs)
            output.logits[:, -1, ids[self.step % len(ids)]] = 1000.0
            self.step += 1
            return output

    model.gpt.__class__, model.gpt.step = Scripted, 0


def test_a_character_of_several_tokens_is_streamed_once_it_is_whole(model, engine):
    ids = model.tokenize("é漢😀")
    assert len(ids) > 3
    speak(model, ids)
    pieces = []
    complete(engine, "", stop="none", temperature=0, max_new_tokens=len(ids), on_text=pieces.append)
    assert pieces == ["é", "漢", "😀"]


class Scripted:
    """An engine that says these steps."""

    name, context_length = "scripted", 100

    def __init__(self, vocabulary, *steps):
        self.vocabulary, self.steps = vocabulary, steps

    def stream(self, prompts, options, over):
        yield from self.steps


def test_an_unknown_log_probability_is_not_a_certain_one(engine):
    """As llama.cpp gives it for a character of several tokens."""
    known, unknown = engine.vocabulary.encode("a")[0], engine.vocabulary.encode("b")[0]
    scripted = Scripted(engine.vocabulary, Step(0, unknown, None), Step(1, known, -9.0))
    first, second = complete(scripted, "", stop="none", num_return_sequences=2)
    assert (first.text, second.text, second.mean_log_prob, second.probability) == ("a", "b", -math.inf, 0)
    assert [c.text for c in complete(scripted, "", stop="none", num_return_sequences=2, min_probability=1e-9)] == ["a"]


def test_logits_that_are_not_finite_are_no_empty_answer(model, engine):
    model.gpt.get_input_embeddings().weight.data *= 1e30
    with pytest.raises(InputError, match="logits are not finite"):
        complete(engine, PROMPT)


@pytest.mark.parametrize(("texts", "scored"), [(("x", "\n"), 1), (("x",), 2), ((), 1)])
def test_the_end_of_a_file_is_scored_right_behind_the_text_alone(engine, texts, scored):
    tokens = [*(engine.vocabulary.encode(text)[0] for text in texts), min(engine.vocabulary.end_ids)]
    steps = [Step(0, token, -0.1 - number) for number, token in enumerate(tokens)]
    (found,) = complete(Scripted(engine.vocabulary, *steps), "", stop="block")
    assert found.text == "".join(texts).rstrip()
    assert math.log(found.probability) == pytest.approx(sum(-0.1 - number for number in range(scored)))


def test_a_long_prompt_keeps_its_control_word_and_its_end(model, engine):
    speak(model, model.tokenize("1"))
    prompt = "\n".join(f"x{i} = {i}" for i in range(500)) + "\n"
    read = read_prompt(engine.vocabulary, prompt, "java", engine.context_length, 20)
    assert read.ids[0] == model.control_id("java")
    assert prompt.endswith(model.tokenizer.decode(read.ids[1:]) + read.end.text.decode())
    found = complete(engine, prompt, "java", stop="none", temperature=0, max_new_tokens=20)[0]
    assert found.prompt_tokens_dropped == read.dropped > 0
    assert (found.stop_reason, len(found.tokens)) == ("length", 20)
    found = complete(engine, prompt, "java", stop="none", temperature=0, max_new_tokens=10_000)[0]
    assert found.stop_reason == "context"
    assert len(found.tokens) == pytest.approx(engine.context_length / 2, abs=3)


@pytest.mark.parametrize("prompt", ["def f():\n    ", "for i in ra", "x <", "x", "return  ", "s = 'é", "\tx = 1\r\n"])
def test_the_end_of_the_prompt_is_generated_again_and_not_shown(model, engine, prompt):
    read = read_prompt(engine.vocabulary, prompt, "python", engine.context_length, 9)
    again = read.end.text.decode()
    assert again
    assert model.tokenizer.decode(read.ids[1:]) + again == prompt
    steps = engine.stream([replace(read, seed=0)], CompletionSettings(temperature=3.0, top_p=1.0), set())
    whole = b"".join(engine.vocabulary.bytes_of(step.token) for step in islice(steps, 12))
    assert whole.startswith(again.encode())
    assert len(complete(engine, prompt, stop="none", seed=0, max_new_tokens=9)[0].tokens) <= 9


def test_many_prompts_are_completed_as_each_of_them(engine):
    prompts = [PROMPT, "for i in ", "x = ["]
    alone = [complete(engine, prompt, temperature=0, max_new_tokens=9, stop="none") for prompt in prompts]
    together = dict(complete_all(engine, list(map(Cursor, prompts)), temperature=0, max_new_tokens=9, stop="none"))
    assert [together[place] for place in range(3)] == alone


def test_a_block_gets_a_body_however_little_the_model_likes_it(model, engine):
    rows = model.gpt.get_input_embeddings().weight.data
    rows[:] = 0
    model.gpt.transformer.ln_f.bias.data[:] = 1
    rows[model.eos_token_id] = 1  # its first wish is to end, its second to say x
    rows[model.tokenize(" x")[0]] = 0.5
    assert complete(engine, "y = 1\n", temperature=0)[0].stop_reason == "eos"
    found = complete(engine, "def f(a):\n   ", temperature=0)[0]
    assert (found.text.strip(), found.stop_reason) == ("x", "eos")


def test_cancelling_keeps_what_there_is(model, engine):
    speak(model, model.tokenize("1"))
    calls = iter([False, False, True])
    found = complete(engine, PROMPT + "\n", stop="none", temperature=0, cancelled=lambda: next(calls))[0]
    assert found.stop_reason == "interrupted"
    assert not found.finished
    assert 1 <= len(found.tokens) <= 3


def test_control_words_in_a_prompt_are_text_and_generated_ones_end_the_completion(model, engine):
    assert model.control_id("java") not in read_prompt(engine.vocabulary, "x = '<java>'; y", "python", 99, 9).ids
    model.gpt.get_input_embeddings().weight.data[:] = 0
    model.gpt.transformer.ln_f.bias.data[:] = 1
    model.gpt.get_input_embeddings().weight.data[model.eos_token_id] = 1  # the untrained model's only wish: to end
    found = complete(engine, "", temperature=0)
    assert [(c.text, c.tokens, c.stop_reason) for c in found] == [("", [], "eos")]
    assert 0.99 < found[0].probability <= 1


def test_ranking(engine):
    def candidate(text, score, valid):
        return Completion(text, [], score, math.exp(score), "loop" if "x" in text else "block", valid)

    good, unlikely, broken = candidate("c", -1.0, True), candidate("a", -2.0, True), candidate("b", -0.1, False)
    loop, empty = candidate("x", -0.01, True), candidate("", -0.01, True)
    assert rank([empty, unlikely, loop, good, broken, candidate("c", -3.0, True)]) == [
        good, unlikely, broken, loop, empty,
    ]  # fmt: skip


def test_the_threshold_leaves_out_what_is_less_likely(engine):
    settings = {"num_return_sequences": 5, "seed": 3, "max_new_tokens": 3, "stop": "none", "temperature": 2.0}
    every = complete(engine, PROMPT, **settings)
    threshold = sorted(completion.probability for completion in every)[2]
    kept = complete(engine, PROMPT, **settings, min_probability=threshold)
    assert kept == [completion for completion in every if completion.probability >= threshold]
    assert 0 < len(kept) < len(every)


def test_parses():
    assert parses("    def f(self):\n        return '\\d'")
    assert not parses("def f(:")
    assert not parses("x = '\0'")
    assert not parses("(" * 10_000)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0},
        {"num_return_sequences": 0}, {"stop": "soon"}, {"min_probability": 2.0}, {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        CompletionSettings(**setting)
