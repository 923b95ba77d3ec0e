import { NpucError } from '../errors.ts';
import { addDims, divDims, mulDims } from '../ir/dims.ts';
import type { DType } from '../ir/dtype.ts';
import { type Dim, type Node, type Shape, tensorType, type ValueType } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { castData } from './cast.ts';
import { castTarget } from './constant.ts';
import { encodeReals, need, readFloats, readReals } from './elements.ts';
import { broadcastStrides } from './indexing.ts';
import { multiplyMatrices, transposeMatrix } from './matrix.ts';
import { concatData, transposeData } from './movement.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown } from './shape-rules.ts';

/** [batch, tokens, heads * size] to [batch, heads, tokens, size]; 4-D tensors are in that layout already. @throws IR022 */
export function splitHeads(x: TensorData, heads: number, where: string): TensorData {
  if (x.shape.length === 4) return x;
  const [batch, tokens, hidden] = x.shape as [number, number, number];
  if (heads === 0 || hidden % heads !== 0)
    throw new NpucError('IR022', { message: `${hidden} features do not split into ${heads} heads`, where });
  return transposeData({ ...x, shape: [batch, tokens, heads, hidden / heads] }, [0, 2, 1, 3]);
}

function inferAttention(context: InferContext): readonly (ValueType | undefined)[] {
  const { node } = context;
  const dtype = inputDtype(context, 0);
  const [q, k, v] = [0, 1, 2].map((index) => context.shape(index));
  const past = context.shape(4);
  const outputs = node.outputs.length;
  if (!q || !k || !v || dtype === undefined || (node.inputs[4] && !past))
    return node.outputs.map((_, index) => (index < 3 ? typeOrUnknown(dtype, undefined) : undefined));
  const heads = (shape: Shape, name: string): [Dim, Dim, Dim, Dim] =>
    shape.length === 4
      ? (shape as [Dim, Dim, Dim, Dim])
      : [shape[0]!, node.int(name, 0), shape[1]!, divDims(shape[2]!, node.int(name, 1))];
  const [batch, qHeads, tokens] = heads(q, 'q_num_heads');
  const [, kvHeads, fresh, size] = heads(k, 'kv_num_heads');
  const [, , , valueSize] = heads(v, 'kv_num_heads');
  const total = past ? addDims(past[2]!, fresh) : fresh;
  const y: Shape = q.length === 4 ? [batch, qHeads, tokens, valueSize] : [batch, tokens, mulDims(qHeads, valueSize)];
  return [
    tensorType(dtype, y),
    tensorType(dtype, [batch, kvHeads, total, size]),
    tensorType(dtype, [batch, kvHeads, total, valueSize]),
    tensorType(dtype, [batch, qHeads, tokens, total]),
  ].slice(0, Math.max(1, outputs));
}

/** What is added to the scores: a float mask, or 0 / -infinity from a boolean one, padded with -infinity to `total`. */
class Bias {
  readonly #values: ArrayLike<number> | undefined;
  readonly #strides: number[] = [0, 0, 0, 0];
  readonly #width: number;
  readonly #boolean: boolean;

  constructor(mask: TensorData | undefined, scores: readonly number[]) {
    this.#boolean = mask?.dtype === 'bool';
    this.#values = mask && readReals(mask);
    const last = mask?.shape[mask.shape.length - 1] ?? 0;
    // A width of 1 broadcasts only where the scores are 1 wide: a shorter mask is padded instead.
    this.#width = mask ? last : Number.POSITIVE_INFINITY;
    if (mask) {
      this.#strides = broadcastStrides(mask.shape, scores);
      this.#strides[3] = 1;
    }
  }

  /** Offset of the row of a batch, head and token. */
  row(b: number, h: number, t: number): number {
    return b * this.#strides[0]! + h * this.#strides[1]! + t * this.#strides[2]!;
  }

  at(row: number, j: number): number {
    if (!this.#values) return 0;
    if (j >= this.#width) return Number.NEGATIVE_INFINITY;
    const value = this.#values[row + j]!;
    if (!this.#boolean) return value;
    return value ? 0 : Number.NEGATIVE_INFINITY;
  }
}

interface AttentionInputs {
  readonly q: TensorData;
  readonly k: TensorData;
  readonly v: TensorData;
  readonly mask: TensorData | undefined;
  /** Valid keys per batch entry; later ones are masked. */
  readonly lengths: readonly number[] | undefined;
  /** Keys of the past, for the causal mask. */
  readonly past: number;
}

interface AttentionOptions {
  readonly scale: number;
  readonly causal: boolean;
  readonly softcap: number;
  /** Which scores the last output shows: raw, masked, capped or after softmax. */
  readonly scoreMode: number;
  /** Type of the softmax's own arithmetic, when it is narrower. */
  readonly softmaxType: DType | undefined;
}

/**
 * Scaled dot-product attention on [batch, heads, tokens, size] with grouped heads: query head h reads key head
 * h / (heads / keyHeads). Order of the scores: scale, mask, softcap, softmax (ONNX Attention-24).
 */
export function attend(inputs: AttentionInputs, options: AttentionOptions): { y: Float64Array; scores: Float64Array } {
  const { q, k, v } = inputs;
  const [batch, heads, tokens, size] = q.shape as [number, number, number, number];
  const [, keyHeads, keys] = k.shape as [number, number, number];
  const valueSize = v.shape[3]!;
  const [qs, ks, vs] = [readFloats(q), readFloats(k), readFloats(v)];
  const y = new Float64Array(batch * heads * tokens * valueSize);
  const shown = new Float64Array(batch * heads * tokens * keys);
  const scores = new Float64Array(tokens * keys);
  const bias = new Bias(inputs.mask, [batch, heads, tokens, keys]);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const head = b * keyHeads + Math.floor(h / (heads / keyHeads));
      const turned = transposeMatrix(ks, head * keys * size, keys, size);
      multiplyMatrices(
        { data: qs, at: (b * heads + h) * tokens * size },
        { data: turned, at: 0 },
        { data: scores, at: 0 },
        tokens,
        size,
        keys,
      );
      const show = (mode: number): void => {
        if (options.scoreMode === mode) shown.set(scores, (b * heads + h) * tokens * keys);
      };
      for (let i = 0; i < scores.length; i++) scores[i] = scores[i]! * options.scale;
      show(0);
      const limit = inputs.lengths?.[b] ?? keys;
      for (let t = 0; t < tokens; t++) {
        const row = bias.row(b, h, t);
        const seen = options.causal ? Math.min(limit, inputs.past + t + 1) : limit;
        for (let j = 0; j < keys; j++) {
          const at = t * keys + j;
          scores[at] = j < seen ? scores[at]! + bias.at(row, j) : Number.NEGATIVE_INFINITY;
        }
      }
      show(1);
      if (options.softcap > 0)
        for (let i = 0; i < scores.length; i++) scores[i] = Math.tanh(scores[i]! / options.softcap) * options.softcap;
      show(2);
      softmaxRows(scores, tokens, keys, options.softmaxType);
      show(3);
      multiplyMatrices(
        { data: scores, at: 0 },
        { data: vs, at: head * keys * valueSize },
        { data: y, at: (b * heads + h) * tokens * valueSize },
        tokens,
        keys,
        valueSize,
      );
    }
  }
  return { y, scores: shown };
}

/** Softmax of every row; one that is masked from end to end gives zeros, as in ONNX Runtime, where plain softmax gives NaN. */
function softmaxRows(scores: Float64Array, rows: number, columns: number, type: DType | undefined): void {
  if (type && type !== 'f64' && type !== 'f32') scores.set(readReals(encodeReals(type, [scores.length], scores)));
  for (let row = 0; row < rows; row++) {
    const line = scores.subarray(row * columns, (row + 1) * columns);
    const max = line.reduce((best, value) => (value > best ? value : best), Number.NEGATIVE_INFINITY);
    if (max === Number.NEGATIVE_INFINITY && !line.some(Number.isNaN)) {
      line.fill(0);
      continue;
    }
    let sum = 0;
    for (let j = 0; j < columns; j++) {
      line[j] = Math.exp(line[j]! - max);
      sum += line[j]!;
    }
    for (let j = 0; j < columns; j++) line[j] = line[j]! / sum;
  }
}

function softmaxType(node: Node): DType | undefined {
  return node.int('softmax_precision', 0) === 0 ? undefined : castTarget(node, 'softmax_precision');
}

/** Attention 23 and 24: multi-head and grouped-query, past to present, boolean or additive mask, 3-D or 4-D inputs. */
const attention = defineOp({
  name: 'Attention',
  since: 23,
  quantization: 'independent',
  infer: inferAttention,
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const given = need(inputs, 0, where);
    const q = splitHeads(given, node.int('q_num_heads', 0), where);
    const k = splitHeads(need(inputs, 1, where), node.int('kv_num_heads', 0), where);
    const v = splitHeads(need(inputs, 2, where), node.int('kv_num_heads', 0), where);
    const past = inputs[4]?.shape[2] ?? 0;
    const keys = inputs[4] ? concatData([inputs[4], k], 2, where) : k;
    const values = inputs[5] ? concatData([inputs[5], v], 2, where) : v;
    const [batch, heads, tokens, size] = q.shape as [number, number, number, number];
    if (heads % keys.shape[1]! !== 0 || size !== keys.shape[3])
      throw new NpucError('IR020', { message: `query [${q.shape}] does not fit key [${keys.shape}]`, where });
    const result = attend(
      { q, k: keys, v: values, mask: inputs[3], lengths: inputs[6] && Array.from(readReals(inputs[6])), past },
      {
        scale: node.float('scale', 1 / Math.sqrt(size)),
        causal: node.int('is_causal', 0) === 1,
        softcap: node.float('softcap', 0),
        scoreMode: node.int('qk_matmul_output_mode', 0),
        softmaxType: softmaxType(node),
      },
    );
    const shape = [batch, heads, tokens, values.shape[3]!];
    const y = castData({ dtype: 'f64', shape, data: result.y }, given.dtype);
    const joined =
      given.shape.length === 4
        ? y
        : { ...transposeData(y, [0, 2, 1, 3]), shape: [batch, tokens, heads * values.shape[3]!] };
    const scoreShape = [batch, heads, tokens, keys.shape[2]!];
    const scores = node.outputs[3]
      ? castData({ dtype: 'f64', shape: scoreShape, data: result.scores }, given.dtype)
      : undefined;
    return [joined, keys, values, scores];
  },
});

/** How rotateHeads reads its input. */
interface RotaryOptions {
  /** Heads of a 3-D input. */
  readonly heads: number;
  /** Leading features of a head that turn; 0 for all. */
  readonly rotated: number;
  readonly interleaved: boolean;
  readonly where: string;
}

/**
 * Rotary position embedding of [batch, heads, tokens, size] or [batch, tokens, heads * size]: pairs (x1, x2) become
 * (cos x1 - sin x2, sin x1 + cos x2); a pair is the two halves, or neighbours when interleaved. The tables are
 * [positions, size / 2] with position ids, else [batch, tokens, size / 2]. @throws IR020, IR022 when these do not fit
 */
export function rotateHeads(
  x: TensorData,
  cos: TensorData,
  sin: TensorData,
  ids: TensorData | undefined,
  options: RotaryOptions,
): TensorData {
  const { where, interleaved } = options;
  const fourD = x.shape.length === 4;
  const batch = x.shape[0]!;
  const heads = fourD ? x.shape[1]! : options.heads;
  const tokens = fourD ? x.shape[2]! : x.shape[1]!;
  if (heads === 0) throw new NpucError('IR022', { message: 'a 3-D input needs num_heads', where });
  const size = elementCount(x.shape) / (batch * heads * tokens);
  const half = (options.rotated || size) / 2;
  if (cos.shape[cos.shape.length - 1] !== half)
    throw new NpucError('IR020', { message: `tables [${cos.shape}] are not ${half} wide`, where });
  const [source, cosines, sines] = [readFloats(x), readFloats(cos), readFloats(sin)];
  const positions = ids && readReals(ids);
  // A single id is the position of the first token (the form of com.microsoft).
  const offset = positions && positions.length === 1 ? positions[0]! : undefined;
  const out = Float64Array.from(source);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < tokens; t++) {
      const token = b * tokens + t;
      const row = (positions ? (offset === undefined ? positions[token]! : offset + t) : token) * half;
      for (let h = 0; h < heads; h++) {
        const from = fourD ? ((b * heads + h) * tokens + t) * size : (token * heads + h) * size;
        for (let i = 0; i < half; i++) {
          const first = from + (interleaved ? 2 * i : i);
          const second = from + (interleaved ? 2 * i + 1 : i + half);
          const [c, s, x1, x2] = [cosines[row + i]!, sines[row + i]!, source[first]!, source[second]!];
          out[first] = c * x1 - s * x2;
          out[second] = s * x1 + c * x2;
        }
      }
    }
  }
  return castData({ dtype: 'f64', shape: x.shape, data: out }, x.dtype);
}

function rotate(x: TensorData, cos: TensorData, sin: TensorData, ids: TensorData | undefined, node: Node): TensorData {
  return rotateHeads(x, cos, sin, ids, {
    heads: node.int('num_heads', 0),
    rotated: node.int('rotary_embedding_dim', 0),
    interleaved: node.int('interleaved', 0) === 1,
    where: nodeName(node),
  });
}

function inferLikeFirst(context: InferContext): readonly (ValueType | undefined)[] {
  return [typeOrUnknown(inputDtype(context, 0), context.shape(0))];
}

const rotaryEmbedding = defineOp({
  name: 'RotaryEmbedding',
  since: 23,
  quantization: 'independent',
  infer: inferLikeFirst,
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    return [rotate(need(inputs, 0, where), need(inputs, 1, where), need(inputs, 2, where), inputs[3], node)];
  },
});

/** com.microsoft RotaryEmbedding: position ids are input 1, before the tables; the number of heads may be left to them. */
const rotaryEmbeddingMs = defineOp({
  name: 'RotaryEmbedding',
  domain: 'com.microsoft',
  since: 1,
  quantization: 'independent',
  infer: inferLikeFirst,
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const cos = need(inputs, 2, where);
    if (x.shape.length === 4 || node.int('num_heads', 0) > 0)
      return [rotate(x, cos, need(inputs, 3, where), inputs[1], node)];
    // Without num_heads a head is as wide as the tables say: view [B, T, H * S] as H heads in the 4-D layout and back.
    const [batch, tokens, hidden] = x.shape as [number, number, number];
    const size = cos.shape[1]! * 2;
    const split = splitHeads(x, hidden / size, where);
    const turned = rotate(split, cos, need(inputs, 3, where), inputs[1], node);
    return [{ ...transposeData(turned, [0, 2, 1, 3]), shape: [batch, tokens, hidden] }];
  },
});

export const ATTENTION_OPS: readonly OpDefinition[] = [attention, rotaryEmbedding, rotaryEmbeddingMs];
