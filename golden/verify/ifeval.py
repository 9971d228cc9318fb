"""Writes ifeval.jsonl: what lm-evaluation-harness' IFEval says of synthetic replies, strict and loose.

NLTK's sentence model is not on PyPI by itself; llama-index-core carries it. `ifeval.py WHEEL` reads it from there:

    pip download --no-deps llama-index-core==0.14.25
    python golden/verify/ifeval.py llama_index_core-0.14.25-py3-none-any.whl
"""

import itertools, json, os, pathlib, sys, tempfile, zipfile

folder = tempfile.mkdtemp()
prefix = "llama_index/core/_static/nltk_cache/"
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith(prefix + "tokenizers/punkt_tab/english/"):
            path = pathlib.Path(folder, name[len(prefix):])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wheel.read(name))
os.environ["NLTK_DATA"] = folder

import langdetect
import nltk

nltk.data.path.insert(0, folder)
langdetect.DetectorFactory.seed = 0

from lm_eval.tasks.ifeval import instructions_util, utils

# The harness loads the pickled model, which newer NLTK refuses; this is the same model in tables.
instructions_util._get_sentence_tokenizer = lambda: nltk.tokenize.PunktTokenizer("english")

PLAIN = (
    "The river rises in the hills and runs down to the sea. Many people live on its banks! "
    "Do they fish there? Some do, and others grow rice.\n\nIn spring the water is cold and clear."
)
# Replies that any kind is asked about.
COMMON = [
    "",
    "   \n ",
    "No.",
    PLAIN,
    PLAIN.upper(),
    PLAIN.lower(),
    '"' + PLAIN + '"',
    "Sure, here it is:\n\n" + PLAIN + "\n\nI hope this helps!",
]

SENTENCES = [
    "One. Two. Three.",
    "Mr. Smith went to Washington. He met Dr. Jones.",
    "What?! No way!!! I see.",
    "It cost 3.50 dollars. That is cheap",
    'He said "Stop." Then he left. (She stayed.) They talked.',
    "1. First item\n2. Second item\n3. Third item",
    "We like fruit, e.g. apples. We like etc. and so on.",
    "Wait... what happened? Nothing... Then it rained.",
    "The U.S. is large. The U.K. is small. It rains.",
    "J. S. Bach wrote it. A. Einstein did not.",
    "no punctuation at all\nbut two lines",
    "He came at 5 p.m. She came at 6 a.m. They ate.",
    "Really?Yes.No",
    "Go!” she said. “Why?” he asked.",
    "Version 2. It works. In 1999. the end",
    "Inc. and Ltd. are abbreviations. Jan. and Feb. too.",
]
CAPITALS = [
    "NASA and the FBI met.",
    "DON'T STOP NOW, I said. I'M here",
    "WELL-KNOWN words, A.B. and U.S. COVID-19 X",
    "CANNOT and GIMME and C'MON",
    "HELLO/WORLD $USD 50% OFF! (YES) [NO] \"WHY\" *BOLD* --DASH-- END.",
    "É À ÖL ß Ǆ ǅ ABC123 123",
    "IT’S ‘HERE’ “NOW” …OK",
]
BULLETS = [
    "* one\n* two\n* three",
    "- one\n- two\n\n  - three",
    "Points:\n* one\n- two\n*** not\n** bold**",
    "*one\n *two",
    "* \n*\n-",
    "text - not\n--- \n* a",
]
MARKED = ["*a* and **b**", "*a* *b* *c*", "**a**", "* *", "****", "*a\nb*", "**two words** here *three* words", "<<Title>>", "<<>>\n<< >>", "<<a\nb>>", "< <a>>", "<<<x>>>"]
PLACES = ["[name] lives in [city].", "[a][b]\n[c\nd]", "[]", "no brackets", "[[a]]"]
STARS = ["A\n***\nB", "***A***B***", "A *** *** B", "A ****** B", "A ****** A", "******A******B******", "A******B******C", "A\n\n*****\n\nB", "a***b ***c"]
SECTIONS = ["Section 1\na\nSection 2\nb", "SECTION 1 a SECTION2 b Section 3", "Section one", "Section  1", "Day 1: a. Day 2: b. Day 3"]
PARAGRAPHS = ["First one\n\nSecond two\n\nThird three", "\n\nFirst\n\n", "first, a\n\n\n\n\"Second\" b", "'Tis\n\nno", "one\ntwo\n\nthree", "   \n\nFirst\n\nsecond!"]
JSONS = ['{"a": 1}', '```json\n{"a": [1, 2]}\n```', "```\n[]\n```", "{a: 1}", "NaN", '{"a": Infinity, "a": -Infinity}', '"\\ud800"', '"\ttab"', "[1,]", "01", "-0.5e-3", "[1] x", "```JSON\n{}```", '{"a": 1}\n\nDone', "\"caf\u00e9\"", "1.", "tRue", "null"]
ENDS = ["Bye. Any other questions?", 'Bye. "any other QUESTIONS?"', "Any other questions? No", "THE END", "p.s. one", "A\nP.S. more", "A p. s. x", "P.P.S. y", "P. P. S. z", "PS: note", "P.S no dot"]
WORDS = ["apple pie and Apple tart, apples", "pineapple", "banana", "a_b c-d e.f don't 12 ３ ½", "naïve café नमस्ते 你好 x²", "letters eee EEE e"]
LANGS = [
    "El río nace en las montañas y baja hasta el mar. Mucha gente vive en sus orillas y pesca.",
    "Der Fluss entspringt in den Bergen und fließt bis zum Meer. Viele Menschen leben an seinen Ufern.",
    "La rivière prend sa source dans les collines et descend jusqu'à la mer. Beaucoup de gens y vivent.",
    "नदी पहाड़ियों से निकलती है और समुद्र तक जाती है। बहुत से लोग इसके किनारे रहते हैं।",
    "Река берёт начало в горах и течёт к морю. Многие люди живут на её берегах.",
    "강은 산에서 시작하여 바다로 흐른다. 많은 사람들이 강가에 산다.",
    "นี่คือแม่น้ำที่ไหลลงสู่ทะเล ผู้คนมากมายอาศัยอยู่ริมฝั่ง",
    "12345 67890",
    "!!! ???",
    "12345 67890 ABC",
]

KINDS = {
    "keywords:existence": ([{"keywords": ["apple"]}, {"keywords": ["river", "RICE"]}, {"keywords": ["a.p", "pie"]}], WORDS),
    "keywords:frequency": ([{"keyword": "apple", "frequency": 2, "relation": "at least"}, {"keyword": "the", "frequency": 3, "relation": "less than"}], WORDS),
    "keywords:forbidden_words": ([{"forbidden_words": ["apple"]}, {"forbidden_words": ["fish", "naïve"]}], WORDS),
    "keywords:letter_frequency": ([{"letter": "e", "let_frequency": 6, "let_relation": "at least"}, {"letter": "P", "let_frequency": 4, "let_relation": "less than"}], WORDS),
    "language:response_language": ([{"language": code} for code in ["es", "de", "hi", "en"]], LANGS),
    "length_constraints:number_sentences": ([{"num_sentences": n, "relation": r} for n in (2, 3, 4, 5) for r in ("at least",)] + [{"num_sentences": 3, "relation": "less than"}], SENTENCES),
    "length_constraints:number_paragraphs": ([{"num_paragraphs": 1}, {"num_paragraphs": 2}, {"num_paragraphs": 3}], STARS),
    "length_constraints:number_words": ([{"num_words": n, "relation": r} for n, r in ((7, "at least"), (5, "at least"), (4, "less than"), (30, "less than"))], WORDS),
    "length_constraints:nth_paragraph_first_word": ([{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Second"}, {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "first"}, {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "tis"}, {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "first"}], PARAGRAPHS),
    "detectable_content:number_placeholders": ([{"num_placeholders": 1}, {"num_placeholders": 2}, {"num_placeholders": 3}], PLACES),
    "detectable_content:postscript": ([{"postscript_marker": "P.S."}, {"postscript_marker": "P.P.S"}, {"postscript_marker": "PS:"}], ENDS),
    "detectable_format:number_bullet_lists": ([{"num_bullets": 1}, {"num_bullets": 2}, {"num_bullets": 3}], BULLETS),
    "detectable_format:constrained_response": ([{}], ["My answer is yes.", "  My answer is no. Really.", "my answer is maybe.", "*My answer is* maybe."]),
    "detectable_format:number_highlighted_sections": ([{"num_highlights": 1}, {"num_highlights": 2}, {"num_highlights": 3}], MARKED),
    "detectable_format:multiple_sections": ([{"section_spliter": "Section", "num_sections": 2}, {"section_spliter": "SECTION ", "num_sections": 1}, {"section_spliter": "Day", "num_sections": 3}], SECTIONS),
    "detectable_format:json_format": ([{}], JSONS),
    "detectable_format:title": ([{}], MARKED),
    "combination:two_responses": ([{}], STARS),
    "combination:repeat_prompt": ([{"prompt_to_repeat": "The River rises"}, {"prompt_to_repeat": "What is 2+2?"}], ["What is 2+2?\n4", " WHAT IS 2+2? four", "Sure:\nWhat is 2+2?"]),
    "startend:end_checker": ([{"end_phrase": "Any other questions?"}, {"end_phrase": "the end "}], ENDS),
    "change_case:capital_word_frequency": ([{"capital_frequency": n, "capital_relation": r} for n, r in ((1, "at least"), (2, "at least"), (3, "at least"), (4, "less than"), (6, "at least"), (8, "less than"))], CAPITALS),
    "change_case:english_capital": ([{}], [LANGS[0].upper(), LANGS[1].upper(), "12345 67890"]),
    "change_case:english_lowercase": ([{}], [LANGS[0].lower(), LANGS[2].lower(), "12345 67890"]),
    "punctuation:no_comma": ([{}], ["a, b", "a; b", "a，b"]),
    "startend:quotation": ([{}], ['"a"', '"', '""', ' "a" ', '"a', "“a”", '*"a"*']),
}

from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

assert set(KINDS) == set(INSTRUCTION_DICT), set(KINDS) ^ set(INSTRUCTION_DICT)

rows = []
for kind, (options, replies) in KINDS.items():
    for kwargs, reply in itertools.product(options, [*COMMON, *replies]):
        example = utils.InputExample(key=0, instruction_id_list=[kind], prompt="", kwargs=[kwargs])
        strict = utils.test_instruction_following_strict(example, reply).follow_all_instructions
        loose = utils.test_instruction_following_loose(example, reply).follow_all_instructions
        rows.append({"kind": kind, "kwargs": kwargs, "reply": reply, "strict": bool(strict), "loose": bool(loose)})
replies = sorted({row["reply"] for row in rows})
with open(pathlib.Path(__file__).with_suffix(".jsonl"), "w", encoding="utf-8") as out:
    print(json.dumps({"replies": replies}, ensure_ascii=False), file=out)
    for row in rows:
        row["reply"] = replies.index(row["reply"])
        print(json.dumps(row, ensure_ascii=False, separators=(",", ":")), file=out)
print(len(rows), "rows")
