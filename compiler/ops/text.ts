import { NpucError } from '../errors.ts';
import { type Dim, type Node, tensorType } from '../ir/graph.ts';
import type { TensorData } from '../ir/tensor.ts';
import { int64s, need } from './elements.ts';
import { broadcastDims, broadcastOffsets } from './indexing.ts';
import { defineOp, type OpDefinition } from './op.ts';
import { broadcastShapes, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Ops on strings, as found before the tensors of a model begin. */

/** @throws IR021 when the tensor holds no strings */
function stringsOf(tensor: TensorData, node: Node): readonly string[] {
  if (!tensor.strings) throw new NpucError('IR021', { message: `${node.op} needs strings`, where: nodeName(node) });
  return tensor.strings;
}

function stringTensor(shape: readonly number[], strings: readonly string[]): TensorData {
  return { dtype: 'string', shape, data: new Uint8Array(0), strings };
}

const stringConcat = defineOp({
  name: 'StringConcat',
  since: 20,
  quantization: 'never',
  infer: (context) => [
    typeOrUnknown('string', broadcastShapes([context.shape(0), context.shape(1)], nodeName(context.node))),
  ],
  evaluate: (inputs, { node }) => {
    const a = need(inputs, 0, nodeName(node));
    const b = need(inputs, 1, nodeName(node));
    const shape = broadcastDims([a.shape, b.shape], nodeName(node));
    const aAt = broadcastOffsets(a.shape, shape);
    const bAt = broadcastOffsets(b.shape, shape);
    const [x, y] = [stringsOf(a, node), stringsOf(b, node)];
    return [
      stringTensor(
        shape,
        Array.from(aAt, (at, i) => x[at]! + y[bAt[i]!]!),
      ),
    ];
  },
});

/** Parts of each string, padded with '' to the longest list; without a delimiter runs of white space separate. */
const stringSplit = defineOp({
  name: 'StringSplit',
  since: 20,
  quantization: 'never',
  infer: (context) => {
    const shape = context.shape(0);
    const out: Dim[] | undefined = shape && [...shape, unknownDim(context.node, 0, shape.length)];
    return [tensorType('string', out), tensorType('i64', shape)];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const delimiter = node.string('delimiter', '');
    const most = node.int('maxsplit');
    const parts = stringsOf(x, node).map((text) => splitText(text, delimiter, most));
    const width = Math.max(0, ...parts.map((list) => list.length));
    const padded = parts.flatMap((list) => [...list, ...new Array<string>(width - list.length).fill('')]);
    return [
      stringTensor([...x.shape, width], padded),
      int64s(
        x.shape,
        parts.map((list) => list.length),
      ),
    ];
  },
});

/** Python's str.split: at most `most` cuts, the rest stays whole. */
function splitText(text: string, delimiter: string, most: number | undefined): string[] {
  const parts: string[] = [];
  let rest = delimiter === '' ? text.trimStart() : text;
  for (;;) {
    if (delimiter === '' && rest.trim() === '') return parts;
    const match = delimiter === '' ? /\s+/.exec(rest) : undefined;
    const at = delimiter === '' ? (match?.index ?? -1) : rest.indexOf(delimiter);
    if (at < 0 || parts.length === most) {
      parts.push(delimiter === '' ? rest.trimEnd() : rest);
      return parts;
    }
    parts.push(rest.slice(0, at));
    rest = rest.slice(at + (match ? match[0].length : delimiter.length));
  }
}

/** Drops stop words, then changes case, of [C] or [1, C]; nothing left is one empty string. */
const stringNormalizer = defineOp({
  name: 'StringNormalizer',
  since: 10,
  quantization: 'never',
  infer: (context) => {
    const shape = context.shape(0);
    const left = unknownDim(context.node, 0, 0);
    return [typeOrUnknown('string', shape && (shape.length === 2 ? [1, left] : [left]))];
  },
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const attribute = node.attributes.get('stopwords');
    const sensitive = node.int('is_case_sensitive', 0) === 1;
    const fold = (word: string): string => (sensitive ? word : word.toLowerCase());
    const stop = new Set((attribute?.kind === 'strings' ? attribute.value : []).map(fold));
    const action = node.string('case_change_action', 'NONE');
    const kept = stringsOf(x, node)
      .filter((word) => !stop.has(fold(word)))
      .map((word) => (action === 'LOWER' ? word.toLowerCase() : action === 'UPPER' ? word.toUpperCase() : word));
    const words = kept.length > 0 ? kept : [''];
    return [stringTensor(x.shape.length === 2 ? [1, words.length] : [words.length], words)];
  },
});

const regexFullMatch = defineOp({
  name: 'RegexFullMatch',
  since: 20,
  quantization: 'never',
  infer: (context) => [typeOrUnknown('bool', context.shape(0))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    let pattern: RegExp;
    try {
      pattern = new RegExp(`^(?:${node.string('pattern', '')})$`, 'su');
    } catch (cause) {
      throw new NpucError('IR022', { message: 'the pattern is no regular expression', where: nodeName(node), cause });
    }
    const data = Uint8Array.from(stringsOf(x, node), (text) => (pattern.test(text) ? 1 : 0));
    return [{ dtype: 'bool', shape: x.shape, data }];
  },
});

/** Counts of n-grams: carried through, for only its shape matters to a compiler. */
const tfIdfVectorizer = defineOp({
  name: 'TfIdfVectorizer',
  since: 9,
  quantization: 'never',
  infer: (context) => {
    const shape = context.shape(0);
    const width = Math.max(0, ...(context.node.ints('ngram_indexes') ?? []).map((index) => index + 1));
    return [tensorType('f32', shape && (shape.length === 2 ? [shape[0]!, width] : [width]))];
  },
});

export const TEXT_OPS: readonly OpDefinition[] = [
  stringConcat,
  stringSplit,
  stringNormalizer,
  regexFullMatch,
  tfIdfVectorizer,
];
