"""Writes what other people's readers say about tokenizers and GGUF blocks, for the tests of compiler/import and compiler/runtime.

usage: pip install tokenizers==0.23.3 gguf==0.19.0 numpy
       python test/tools/write-import-expectations.py <material folder> <SmolLM2 GGUF> <fixtures folder>
Ids come from the Rust tokenizers, blocks from the gguf package. The outputs are committed; run it again only to add cases.
"""
import base64, hashlib, json, os, struct, subprocess, sys, tempfile

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

material, smollm, fixtures = sys.argv[1:]

TEXTS = [
    '', ' ', '  ', '\n', '\n\n', ' \n ', '\t', 'a', ' a', 'a ', '  a  b   c    ', 'Hello, world!', 'Hello world\n',
    "I'm you're he's they'd we'll I've don't CAN'T SHE'S i'M", 'The capital of France is', 'x=1;y=-2.5e10', '3.14159 1,000,000',
    '1234567890', '12 345 6789', 'room404b', '\u00bd \u00b2\u00b3 x\u00b2 \u0663\u0664 \u2163 \u2460\u2461 \u0967\u0968\u0969', 'abc\u0661\u0662def',
    'na\u00efve caf\u00e9 r\u00e9sum\u00e9', 'nai\u0308ve cafe\u0301', '\u00c5ngstr\u00f6m \u212b A\u030a', '\u4f60\u597d\uff0c\u4e16\u754c\uff01', '\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3002\u6539\u884c',
    '\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8', '\u1112\u1161\u11ab\u1100\u1173\u11af', '\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645', '\u05e9\u05dc\u05d5\u05dd', '\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!', '\u0939\u093f\u0928\u094d\u0926\u0940 \u092a\u093e\u0920',
    '\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35', '\U0001f600', 'a\U0001f600b', '\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family', '\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea', '\u2764\ufe0f\U0001f44d\U0001f3fd', '\U0001d54f\U0001d7d9 \U00010348 \U0002070e',
    'zero\u200bwidth \u200d\u200c', 'nbsp\u00a0here\u00a0\u00a0two', 'em\u2003space\u2009thin\u202fnarrow\u3000ideographic', 'nel\u0085line\u2028sep\u2029para', '\ufeffbom at start, in\ufeffside, \ufeff twice\ufeff',
    'vt\x0bff\x0cfs\x1cus\x1f', 'nul\x00soh\x01esc\x1bdel\x7f', 'crlf\r\nline\r\n\r\nend\r', '\r\n \r\n  \r\n', 'tabs\t\tand\t spaces \t mixed', 'trailing spaces   ', '   leading', '\n\n\n  indented\n    more\n',
    'def f(x):\n    return x  # comment\n\n\nclass A:\n\tpass\n', 'for (let i = 0; i < 10; i++) { a[i] += "\\n"; }', '<html><body class="x">&amp;</body></html>', 'https://example.org/a/b?c=d&e=%20#f', 'user@example.org +49-30-123456',
    '!!!???...---___***', '\u201cquotes\u201d \u2018single\u2019 \u2014 dash \u2026', '$100 \u20ac50 \u00a320 \u00a51000', '\u00a9\u00ae\u2122 \u2190\u2191\u2192\u2193 \u2200\u2203\u2208 \u221e\u2260', 'UPPER lower MiXeD', 'supercalifragilisticexpialidocious',
    'a' * 300, 'ab' * 200, ' ' * 100 + 'x', '\u2581under\u2581bar', '\u0120G\u010a byte-level letters', '<s>', '</s>', '<unk>', 'a<s>b</s>c', '<s> leading </s> x', '<0x41><0x0A>', '<|endoftext|>', '<|im_start|>user\nhi<|im_end|>\n', '<|im_start|> x <|im_end|>  y',
    'text<|endoftext|>text', '__proto__ constructor toString', '\u01c4\u01c5\u01c6 \u00df\u1e9e \ufb01\ufb02', '\ufffd replaced', 'e\u0301\u0302\u0303', '\ud7a3\u115f', '\u2028', '\u0085', '\ufeff',
    'Once upon a time, there was a little girl named Lily.', 'Mixed \u4e2d\u6587 and English\u3001with 123\u6570\u5b57 and \U0001f600emoji.',
]
FILES = [('text/tinyshakespeare.txt', 30000), ('text/alice29.txt', 30000), ('text/wikitext2-valid.txt', 60000), ('longdoc/pride_and_prejudice.txt', 30000)]


def digest(ids):
    return hashlib.sha256(np.array(ids, '<i4').tobytes()).hexdigest()


def describe(tokenizer):
    cases = [dict(ids=(ids := tokenizer.encode(text).ids), plain=tokenizer.encode(text, add_special_tokens=False).ids,
                  decoded=tokenizer.decode(ids), decodedAll=tokenizer.decode(ids, skip_special_tokens=False)) for text in TEXTS]
    for case in cases:
        if case['plain'] == case['ids']: del case['plain']
        if case['decodedAll'] == case['decoded']: del case['decodedAll']
    files = []
    for name, length in FILES:
        ids = tokenizer.encode(open(os.path.join(material, name), 'rb').read()[:length].decode('utf-8', 'ignore')).ids
        files.append(dict(file=name, bytes=length, count=len(ids), sha256=digest(ids)))
    # Ids in an order that no text has: decoders must still join them to one text.
    shuffled = [int(i) for i in np.random.default_rng(3).integers(0, tokenizer.get_vocab_size(), 64)]
    return dict(cases=cases, files=files, shuffled=dict(ids=shuffled, decoded=tokenizer.decode(shuffled, skip_special_tokens=False)))


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace('{1,3}', '')


def byte_level(vocab, merges, pattern, ignore_merges=False, nfc=False):
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    if nfc: tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_merges(path):
    lines = open(path, encoding='utf-8').read().split('\n')
    return [tuple(line.split(' ')) for line in lines if line and not line.startswith('#version')]


def smollm2():
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, os.path.join(material, 'tools/convert_gguf_llama.py'), smollm, out, 'bf16'], check=True)
        return Tokenizer.from_file(os.path.join(out, 'tokenizer.json'))


def write(name, value):
    with open(os.path.join(fixtures, name), 'w') as file:
        json.dump(value, file, ensure_ascii=True, separators=(',', ':'))
        file.write('\n')


folder = lambda name: os.path.join(material, 'tokenizers', name)
qwen_vocab = json.load(open(folder('qwen2.5/vocab.json'), encoding='utf-8'))
gpt2_vocab = json.load(open(folder('gpt2/vocab.json'), encoding='utf-8'))
tokenizers = {
    'stories260k': Tokenizer.from_file(os.path.join(material, 'stories260k/hf/tokenizer.json')),
    'phi3': Tokenizer.from_file(folder('phi3/tokenizer.json')),
    'gpt2': Tokenizer.from_file(folder('gpt2/tokenizer.json')),
    'qwen2.5': byte_level(qwen_vocab, read_merges(folder('qwen2.5/merges.txt')), QWEN2, nfc=True),
    'gpt2-split-as-llama3': byte_level(gpt2_vocab, read_merges(folder('gpt2/merges.txt')), LLAMA3, ignore_merges=True),
    'smollm2': smollm2(),
}
write('tokenizers/texts.json', TEXTS)
for name, tokenizer in tokenizers.items(): write(f'tokenizers/{name}.json', describe(tokenizer))



def small(alphabet, pairs, pre_tokenizer):
    """A BPE model whose merges join across the places where the pre-tokenizer must split."""
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


bytes_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
encoded = lambda text: [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]]
nel, bom = encoded('\x85')[0], encoded('\ufeff')[0]
space_pairs = [(nel[0], nel[1]), (bom[0], bom[1]), (bom[:2], bom[2]), (nel, '!'), (bom, '!')]
dash_pairs = [('a', '-'), ('-', 'b'), ('-', '-'), ('a', 'b')]
word_pairs = [('a', '\u2581'), ('\u2581', 'b'), ('\u2581', '\u2581'), ('b', 'a')]
digit_pairs = [('1', '2'), ('\u00b2', '\u00b3'), ('2', '\u00b3'), ('x', '\u00b2'), ('\u0663', '1')]
dashes = ['a-b', '-ab-', 'a--b', '--', 'ab---ab', 'ba']
words = ['a b', ' ab', 'a  b', 'b a b ', '']
splits = {
    'ByteLevel': (small(bytes_alphabet, space_pairs, pre_tokenizers.ByteLevel(add_prefix_space=False)), ['a\x85!', 'a\ufeff!', '\x85 !', ' \ufeff !\ufeff']),
    'Digits individual': (small('12x\u00b2\u00b3\u0663', digit_pairs, pre_tokenizers.Digits(individual_digits=True)), ['12', '\u00b2\u00b3x\u00b2', '2\u00b3', '\u06631']),
    'Digits together': (small('12x\u00b2\u00b3\u0663', digit_pairs, pre_tokenizers.Digits(individual_digits=False)), ['12x', '\u00b2\u00b3x\u00b2', 'x2\u00b3', '\u06631']),
    **{f'Metaspace {scheme} {split}': (small('ab\u2581', word_pairs, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)), words)
       for scheme in ['always', 'never', 'first'] for split in [True, False]},
    **{f'Split {behavior}': (small('ab-', dash_pairs, pre_tokenizers.Split(pattern, behavior)), dashes)
       for behavior, pattern in [('removed', '-'), ('isolated', '-'), ('merged_with_previous', '-'), ('merged_with_next', Regex('-')), ('contiguous', '-')]},
}
write('tokenizers/splits.json', [dict(name=name, tokenizer=json.loads(tokenizer.to_str()), texts=texts, ids=[tokenizer.encode(text).ids for text in texts])
                                 for name, (tokenizer, texts) in splits.items()])

rng = np.random.default_rng(7)
blocks = {}
for name, halves in [('Q4_0', [0]), ('Q4_1', [0, 2]), ('Q5_0', [0]), ('Q5_1', [0, 2]), ('Q8_0', [0]), ('Q4_K', [0, 2]), ('Q5_K', [0, 2]), ('Q6_K', [208])]:
    kind = GGMLQuantizationType[name]
    size, length = GGML_QUANT_SIZES[kind]
    count = 512 // size
    raw = rng.integers(0, 256, size=(count, length), dtype=np.uint8)
    for at in halves: raw[:, at:at + 2] = rng.normal(0, 0.05, count).astype(np.float16).view(np.uint8).reshape(count, 2)
    values = quants.dequantize(raw.reshape(-1), kind).astype('<f4').reshape(-1)
    assert values.size == 512
    blocks[name] = dict(code=int(kind), blocks=base64.b64encode(raw.tobytes()).decode(), sha256=hashlib.sha256(values.tobytes()).hexdigest(), first=[float(v) for v in values[:4]])
write('gguf/blocks.json', blocks)
