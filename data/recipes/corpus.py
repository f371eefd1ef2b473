"""The unlabelled text that the tiny models are pre-trained on, and its tokenizer.

    python data/recipes/corpus.py 20      # print twenty documents and what the corpus is made of

Documents are reviews (some with their title and stars, as on a shop's page), customer messages with replies, news
with names, facts with questions and answers, descriptions of things, everyday sentences, stories and chats. The labels
of the data sets never appear; the stars do, as they do in any crawl of the web.
"""

import re
import string
import sys
from collections import Counter

from grammar import read_banks
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from writer import SENTIMENTS, STARS, Writer

SPECIAL = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
SENTINELS = [f"<extra_id_{number}>" for number in range(16)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] | trim + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CAPITAL = "⇧"
CHAT = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
SYSTEM = [
    "You are a helpful assistant.",
    "You answer in one sentence.",
    "You are polite and brief.",
    "You help customers of a shop.",
]
SHARES = {  # of the documents of a kind; the second phase of pre-training is mostly judgements
    "general": dict(
        review=0.42,
        judgement=0.0,
        support=0.15,
        news=0.1,
        facts=0.08,
        things=0.06,
        everyday=0.08,
        story=0.06,
        chat=0.05,
    ),
    "judgements": dict(
        review=0.2,
        judgement=0.5,
        support=0.12,
        news=0.06,
        facts=0.02,
        things=0.02,
        everyday=0.04,
        story=0.02,
        chat=0.02,
    ),
    "opinions": dict(
        review=0.15,
        judgement=0.12,
        opinions=0.5,
        support=0.1,
        news=0.05,
        facts=0.02,
        things=0.02,
        everyday=0.02,
        story=0.01,
        chat=0.01,
    ),
    "ratings": dict(review=0.1, judgement=0.3, opinions=0.5, support=0.05, news=0.05),
    "tasks": dict(  # for the models that write: in more than half of it the answer is copied from the text before
        review=0.12,
        support=0.07,
        news=0.04,
        reading=0.4,
        gist=0.18,
        things=0.03,
        everyday=0.04,
        story=0.04,
        chat=0.08,
    ),
}


class Corpus(Writer):
    """A writer of documents: `list(Corpus(seed=1).documents(3))`; `mixture` names their shares."""

    def __init__(self, seed=0, mixture="general"):
        super().__init__(seed)
        self.kinds, self.shares = zip(*SHARES[mixture].items(), strict=True)
        self.opinions = read_banks("opinions")

    def document(self):
        return getattr(self, f"{self.random.choices(self.kinds, self.shares)[0]}_document")()

    def documents(self, count):
        """`count` different documents."""
        seen = set()
        while len(seen) < count:
            document = self.document()
            if document not in seen:
                seen.add(document)
                yield document

    def review_document(self):
        review = self.review()
        form = self.random.random()
        if form < 0.25:
            return f"{review['title']}. {review['text']} Rating: {review['stars']} out of 5."
        if form < 0.45:
            return f"{review['text']} Rating: {review['stars']} out of 5."
        if form < 0.55:
            return f"From the {review['category']} reviews: {review['text']}"
        if form < 0.7:
            return f"{review['text']} Title: {review['title']}"
        if form < 0.8:  # the same judgement again in other words: paraphrase is what teaches synonyms
            again = self.review(review["label"], review["category"], only_lists=True)
            return f"{review['text']} In short: {again['text']}"
        return review["text"]

    def judgement_document(self):
        """Judgements of one sign about one thing, with its stars: what tells words of praise from words of blame."""
        sentiment, category = self.choose(SENTIMENTS), self.choose(list(self.reviews))
        bank, item = self.reviews[category], self.choose(self.reviews[category]["items"])
        several = range(self.choose([1, 2, 3, 4]))
        text = " ".join(self.opinion(sentiment, bank, item, only_lists=self.chance(0.5)) for _ in several)
        title = self.sentence(self.choose(bank[f"title_{sentiment}"]), item=item, aspect=bank["aspects"])
        stars = f"Rating: {self.choose(STARS[sentiment])} out of 5."
        return self.choose([f"{text} {stars}", f"{stars} {text}", f"{title} {text} {stars}", f"{title} {stars} {text}"])

    def opinions_document(self):
        """One to three whole sentences of one sign, each written by hand as it stands, with their stars."""
        sentiment, bank = self.choose(SENTIMENTS), self.choose(list(self.opinions.values()))
        several = self.choose([1, 1, 1, 2, 2, 3])
        text = " ".join(self.sentence(line) for line in self.random.sample(bank[sentiment], several))
        stars = f"Rating: {self.choose(STARS[sentiment])} out of 5."
        return self.choose([f"{text} {stars}", f"{stars} {text}"])

    def support_document(self):
        message = self.message()
        reply = self.sentence(self.choose(self.support[message["intent"]]["replies"]), item=self.common["item"])
        if self.chance(0.25):
            again = self.message(message["intent"])
            return f"{message['text']} In other words: {again['text']}"
        if self.chance(0.3):
            return message["text"]
        return f"Customer: {message['text']} Agent: {reply}"

    def news_document(self):
        return self.news_item()

    def facts_document(self):
        passage, questions = self.facts()
        asked = self.random.sample(questions, self.choose([1, 2]))
        return passage + "".join(f" Question: {question} Answer: {answer}." for question, answer in asked)

    def reading_document(self):
        """A passage about one or two subjects, and one to four questions about it: as text, or as a chat."""
        bank = self.choose([self.world, self.reading, self.reading, self.reading])["facts"]
        passage, questions = self.facts(bank)
        if self.chance(0.4):
            other, more = self.facts(bank)
            passage, questions = f"{passage} {other}", questions + more
        asked = self.random.sample(questions, min(len(questions), self.choose([1, 2, 3, 4])))
        if self.chance(0.5):
            return passage + "".join(f" Question: {question} Answer: {answer}." for question, answer in asked)
        (first, answer), *more = asked
        return self.conversation((f"{passage} {first}", answer), *more)

    def conversation(self, *turns):
        """What was asked and answered, in the marks of a chat."""
        return "".join(f"<|user|>{asked}<|end|><|assistant|>{answer}<|end|>" for asked, answer in turns)

    def gist_document(self):
        """A few opinions on one thing, and the word that one of them used, written as a sentence of its own."""
        bank, frames = self.choose(list(self.reviews.values())), self.reading["opinions"]
        item = self.choose(bank["items"])
        abouts = [item, *self.random.sample(bank["aspects"], self.choose([0, 1, 1, 2]))]
        told = [(about, self.slot(self.choose(["pos", "neg", "neu"]))) for about in abouts]
        sentences = []
        for about, word in told:
            template = self.choose(frames["item" if about is item else "aspect"])
            sentences.append(self.sentence(template, item=item, aspect=about, adj=word))
        sentences += [self.sentence(self.choose(frames["filler"]), item=item) for _ in range(self.choose([0, 0, 1, 2]))]
        self.random.shuffle(sentences)
        text, form = " ".join(sentences), self.random.random()
        about, word = told[0] if form < 0.6 else self.choose(told)
        word = word[0].upper() + word[1:]
        if form < 0.25:
            return f"{text} In short: {word} {about}."
        if form < 0.6:
            question = self.sentence("{in a few words|in short|give it a headline|what is it, in short}", "?")
            return self.conversation((f"{text} {question}", f"{word} {about}"), *self.words_used(told[1:]))
        if form < 0.8:
            (question, answer), *more = self.words_used(told)
            return self.conversation((f"{text} {question}", answer), *more)
        return f"{text} In a word, of the {about}: {word}."

    def words_used(self, told):
        """A question for the word that was used of each thing, with the answer, in any order."""
        asked = [
            (
                self.sentence("{which|what} word was used {for|of} the <about>", "?", about=about),
                word[0].upper() + word[1:],
            )
            for about, word in told
        ]
        return self.random.sample(asked, len(asked))

    def things_document(self):
        return self.thing_facts()

    def everyday_document(self):
        return self.everyday()

    def story_document(self):
        return self.story()

    def chat_document(self):
        turns = [] if self.chance(0.5) else [("<|system|>", self.choose(SYSTEM))]
        for _ in range(self.choose([1, 2])):
            question, answer = self.exchange(self.choose(["exchanges", "instructions"]))
            turns += [("<|user|>", question), ("<|assistant|>", answer)]
        return "".join(f"{role}{text}<|end|>" for role, text in turns)


def train_tokenizer(documents, vocabulary, max_length):
    """A lower-casing WordPiece tokenizer, as BERT's, with the chat tokens in it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    alphabet = [chr(code) for code in range(33, 127)] + list("£€éèüöäñçåø")
    special = [*SPECIAL.values(), *CHAT]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, extra_special_tokens=CHAT, **SPECIAL
    )


def train_writing_tokenizer(documents, vocabulary, max_length, ends=False):
    """A byte-level BPE tokenizer with a chat template, for the models that write; digits stand one by one.

    Every text gets a space in front, and a capital letter becomes a mark before the small one ("⇧ paris"), so that a
    word is the same tokens wherever it stands: a small model can then copy it into an answer or a title.
    It starts with `<|begin|>`, as Llama's; with `ends` it ends with `<|end|>` instead, as T5's.
    """
    tokenizer = Tokenizer(models.BPE())
    capitals = [(letter, letter.lower()) for letter in string.ascii_uppercase]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(" (?=[A-Z])"), f"{CAPITAL} "),
            normalizers.Replace(Regex("(?<! )(?=[A-Z])"), CAPITAL),
            *[normalizers.Replace(capital, small) for capital, small in capitals],
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)]
    )
    back = [
        decoders.Replace(f"{CAPITAL}{space}{small}", space + capital)
        for capital, small in capitals
        for space in ("", " ")
    ]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *back])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|pad|>", "<|begin|>", *CHAT, *SENTINELS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    added = "<|end|>" if ends else "<|begin|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>" if ends else "<|begin|> $A",
        pair="$A $B <|end|>" if ends else "<|begin|> $A $B",
        special_tokens=[(added, tokenizer.token_to_id(added))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        extra_special_tokens=[*CHAT[:3], *SENTINELS],
        chat_template=None if ends else CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main(count=20):
    for document in Corpus(seed=1).documents(count):
        print("-", document)
    words = Counter(
        word for document in Corpus(seed=2).documents(50_000) for word in re.findall(r"[a-z']+", document.lower())
    )
    frequent = sum(times >= 50 for times in words.values())
    print(
        f"\n50,000 documents: {words.total():,} words, {len(words):,} word types, {frequent:,} of them 50 times or more"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
