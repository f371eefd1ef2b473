"""What the answers are worth: scores, simple baselines on the same rows, and what looks wrong with them."""

import unicodedata
from collections import Counter

import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer

import report
import verdict

UNTRAINED, FREQUENT, COPY = "untrained model", "the most frequent answer", "the input, copied"
# Runs of letters and digits, each symbol such as an emoji, and each letter by itself where words are not set apart
# (Chinese, Japanese, Thai). A letter keeps its marks, such as accents and the vowels of Hindi.
ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}&&\p{L}]\p{M}*"
WORD = rf"{ALONE}|(?:(?!{ALONE})[\p{{L}}\p{{M}}\p{{N}}\u200c\u200d])+|\p{{So}}"


# ---- Scores ---------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer for ROUGE that knows the letters of all scripts; its own one drops all but a to z."""

    @staticmethod
    def tokenize(text):
        return words(text, WORD)


def words(text, pattern):
    """The pieces of a text that fit; an accent may be part of its letter, or a sign of its own."""
    return regex.findall(pattern, unicodedata.normalize("NFC", text.lower()), flags=regex.V1)


def words_and_signs(text):
    """What BLEU counts: a comma that is missing is a mistake too."""
    return words(text, rf"{WORD}|[\p{{P}}\p{{S}}]")


def main_metric(config):
    """The score that the run is judged by."""
    return "rougeL"


def rouge(predictions, references):
    """ROUGE-L of each row."""
    scorer, pairs = RougeScorer(["rougeL"], tokenizer=Words()), zip(references, predictions, strict=True)
    return np.array([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs])


def statistics(predictions, references):
    """What the mean ROUGE-L is made of, a line a row."""
    return np.stack([rouge(predictions, references), np.ones(len(references))], 1), verdict.ratio


def bleu_statistics(predictions, references):
    """What BLEU is made of, a line a row: equal runs of 1 to 4 words, all such runs, and the words of both sides."""
    lines = []
    for said, true in zip(map(words_and_signs, predictions), map(words_and_signs, references), strict=True):
        both = [
            [Counter(zip(*(one[i:] for i in range(n)), strict=False)) for one in (said, true)] for n in (1, 2, 3, 4)
        ]
        equal, total = [(a & b).total() for a, b in both], [a.total() for a, _ in both]
        lines.append([*equal, *total, len(said), len(true)])
    return np.array(lines, float), bleu


def bleu(sums):
    """BLEU of the whole, from the sums of its statistics: shape (..., 10)."""
    equal, total, said, true = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    precision = np.exp(np.log(np.maximum(equal, 1e-9) / np.maximum(total, 1)).mean(-1))
    return precision * np.exp(np.minimum(0, 1 - true / np.maximum(said, 1)))


def scores(predictions, references):
    """The share of answers that are right to the letter, ROUGE-L, and BLEU over words of any script."""
    exact = np.mean([said == true for said, true in zip(predictions, references, strict=True)])
    whole = bleu(bleu_statistics(predictions, references)[0].sum(0))
    return {"exact_match": float(exact), "rougeL": float(rouge(predictions, references).mean()), "bleu": float(whole)}


# ---- Baselines ------------------------------------------------------------------------------------------------------


def asked(rows):
    return [row["messages"][-2]["content"].strip() if len(row["messages"]) > 1 else "" for row in rows]


def answers(rows):
    return [row["messages"][-1]["content"].strip() for row in rows]


def baselines(rows):
    """Answers of each baseline for the validation and the test rows: always the same one, and what was asked."""
    common = Counter(answers(rows["train"])).most_common(1)[0][0]
    parts = {part: rows[part] for part in ("validation", "test")}
    return {
        FREQUENT: {part: [common] * len(one) for part, one in parts.items()},
        COPY: {part: asked(one) for part, one in parts.items()},
    }


# ---- What looks wrong -----------------------------------------------------------------------------------------------


def warnings(results, rows, config):
    """Sentences on what looks wrong, each with the setting to change; none when nothing does."""
    compared, found = results["baselines"], []
    said, true = results["predictions"]["validation"], results["references"]["validation"]
    empty, limit = sum(not one for one in said), config.get("generation", {}).get("max_new_tokens", 20)
    if len(set(said)) == 1 < len(set(true)):
        found.append(
            f"It gives every validation row the same answer, {said[0][:60]!r}: raise {verdict.effort(config)}."
        )
    elif empty > 0.2 * len(said):
        found.append(f"{empty} of {len(said)} answers are empty: raise {verdict.effort(config)}.")
    if results["too_long"] > 0.05 * len(true):
        longer = f"{results['too_long']} of {len(true)} validation answers are longer than an answer may get"
        found.append(f"{longer}: raise generation.max_new_tokens: {limit}.")
    others = set(compared["test"]) - {"this model"}
    harder = verdict.of_the_parts(compared)
    return found + harder + verdict.of_the_baselines(config, compared, results["metric"], () if harder else others)


# ---- The report's own sections --------------------------------------------------------------------------------------


def sections(results, rows, config):
    """Titles with HTML: answers to validation rows before and after the training, and BLEU."""
    lines = [
        (question, true, before, after)
        for question, true, before, after in zip(
            asked(rows["validation"]),
            results["references"]["validation"],
            results["untrained"]["validation"],
            results["predictions"]["validation"],
            strict=False,
        )
    ][:12]
    table = report.table(("asked", "wanted", "before the training", "after"), lines)
    bleu = "".join(
        report.scores(part, one, "BLEU", len(results["references"][part])) for part, one in results["bleu"].items()
    )
    return [("Before and after, on validation rows", table), ("BLEU", bleu)]
