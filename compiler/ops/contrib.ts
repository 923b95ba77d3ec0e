import { NpucError } from '../errors.ts';
import { addDims, divDims, maxDims, mulDims } from '../ir/dims.ts';
import { type Dim, type Node, tensorType, type ValueType } from '../ir/graph.ts';
import { type TensorData, unpackSubByte } from '../ir/tensor.ts';
import { geluExact, geluTanh, sigmoid } from './activation.ts';
import { attend, rotateHeads, splitHeads } from './attention.ts';
import { combineElements, mapElements } from './broadcast.ts';
import { castData } from './cast.ts';
import { need, newArray, readFloats, readInts, readReals } from './elements.ts';
import { matmulData, matmulShape } from './matmul.ts';
import { sliceAxis, transposeData } from './movement.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { QUANTIZE_OPS } from './quantize.ts';
import { inputDtype, likeInput, nodeName, typeOrUnknown } from './shape-rules.ts';

/** Ops of the domain com.microsoft that exported language and vision models hold (ONNX Runtime's ContribOperators). */
const DOMAIN = 'com.microsoft';

/** An activation of x, or of x + bias where input 1 is given. */
function activation(name: string, make: (node: Node) => (x: number) => number): OpDefinition {
  return defineOp({
    name,
    domain: DOMAIN,
    since: 1,
    quantization: 'independent',
    infer: likeInput(),
    evaluate: (inputs, { node }) => {
      const x = need(inputs, 0, nodeName(node));
      const bias = inputs[1];
      const sum = bias ? combineElements(x, bias, { real: (a, b) => a + b }, x.dtype, nodeName(node)) : x;
      return [mapElements(sum, make(node))];
    },
  });
}

/** What a MatMulNBits node says about its weight. */
interface PackedWeight {
  readonly bits: number;
  readonly block: number;
  readonly rows: number;
  readonly depth: number;
}

/**
 * The [K, N] matrix behind B u8 [N, blocks, block * bits / 8]: (q - zero) * scale with a scale per row and block, zero
 * points packed per row, the middle of the range by default.
 */
function unpackWeight(
  b: TensorData,
  scales: TensorData,
  zeros: TensorData | undefined,
  weight: PackedWeight,
): TensorData {
  const { bits, block, rows, depth } = weight;
  const blocks = Math.ceil(depth / block);
  const padded = blocks * block;
  const unpack = (tensor: TensorData, count: number): ArrayLike<number> =>
    bits === 8 ? readReals(tensor) : unpackSubByte(tensor.data as Uint8Array, bits, count, false);
  const integers = unpack(b, rows * padded);
  const factors = readReals(scales);
  const packedRow = Math.ceil((blocks * bits) / 8) * (8 / bits);
  const points = zeros && (zeros.dtype === 'u8' ? unpack(zeros, rows * packedRow) : readReals(zeros));
  const pointsPerRow = zeros?.dtype === 'u8' ? packedRow : blocks;
  const out = new Float32Array(depth * rows);
  for (let n = 0; n < rows; n++)
    for (let k = 0; k < depth; k++) {
      const at = Math.floor(k / block);
      const zero = points ? points[n * pointsPerRow + at]! : 2 ** (bits - 1);
      out[k * rows + n] = (integers[n * padded + k]! - zero) * factors[n * blocks + at]!;
    }
  return { dtype: 'f32', shape: [depth, rows], data: out };
}

const matMulNBits = defineOp({
  name: 'MatMulNBits',
  domain: DOMAIN,
  since: 1,
  quantization: 'never',
  infer: (context) => [
    typeOrUnknown(
      inputDtype(context, 0),
      matmulShape(context.shape(0), [context.node.int('K', 0), context.node.int('N', 0)], nodeName(context.node)),
    ),
  ],
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    if (inputs[4]) throw new NpucError('RT010', { message: 'MatMulNBits with g_idx', where });
    const a = need(inputs, 0, where);
    const weight = unpackWeight(need(inputs, 1, where), need(inputs, 2, where), inputs[3], {
      bits: node.int('bits', 4),
      block: node.int('block_size', 32),
      rows: node.int('N', 0),
      depth: node.int('K', 0),
    });
    const product = matmulData(a, weight, 'f64', where);
    const bias = inputs[5];
    const sum = bias ? combineElements(product, bias, { real: (x, y) => x + y }, 'f64', where) : product;
    return [castData(sum, a.dtype)];
  },
});

function inferGrouped(context: InferContext): readonly (ValueType | undefined)[] {
  const { node } = context;
  const dtype = inputDtype(context, 0);
  const query = context.shape(0);
  const past = context.shape(3);
  const heads = node.int('num_heads', 1);
  const kvHeads = node.int('kv_num_heads', 1);
  if (!query || dtype === undefined) return node.outputs.map(() => typeOrUnknown(dtype, undefined));
  const packed = !node.inputs[1];
  const size: Dim = divDims(query[2]!, packed ? heads + 2 * kvHeads : heads);
  const y = tensorType(dtype, [query[0]!, query[1]!, mulDims(size, heads)]);
  const total = context.content(6)?.[0];
  const room = past?.[2] ?? 0;
  // A buffer larger than the total is reused as it is; else the present is as long as the total.
  const length = total === undefined ? addDims(room, query[1]!) : maxDims(room, total);
  const present = typeOrUnknown(dtype, [query[0]!, kvHeads, length, size]);
  return [y, present, present].slice(0, node.outputs.length);
}

/** Attributes of GroupQueryAttention that change the arithmetic in ways not followed here. */
const REFUSED = ['smooth_softmax', 'k_quant_type', 'v_quant_type', 'qk_output'];

/**
 * Causal attention with its cache and, with do_rotary, rotary embedding inside. Inputs: query (or packed QKV), key, value,
 * past_key, past_value [B, KV, P, S], seqlens_k [B] (keys of a sequence minus one), total_sequence_length, cos, sin,
 * position_ids, attention_bias.
 */
const groupQueryAttention = defineOp({
  name: 'GroupQueryAttention',
  domain: DOMAIN,
  since: 1,
  quantization: 'independent',
  infer: inferGrouped,
  evaluate: (inputs, { node }) => {
    const where = nodeName(node);
    const refused = REFUSED.find((name) => node.int(name, 0) > 0 || !['', 'NONE'].includes(node.string(name, '')));
    if (refused !== undefined || inputs[11])
      throw new NpucError('RT010', { message: `GroupQueryAttention with ${refused ?? 'a head sink'}`, where });
    const { query, key, value } = separate(inputs, node);
    const [batch, , tokens, size] = query.shape as [number, number, number, number];
    const total = readInts(need(inputs, 6, where))[0]!;
    const lengths = readInts(need(inputs, 5, where)).map((last) => last + 1);
    // The first call holds the whole prompt; later ones append at each sequence's own end.
    const pasts = lengths.map((length) => (tokens === total ? 0 : length - tokens));
    const turned = (x: TensorData): TensorData => {
      if (node.int('do_rotary', 0) !== 1) return x;
      const ids = Array.from({ length: batch * tokens }, (_, i) => pasts[Math.floor(i / tokens)]! + (i % tokens));
      const positions: TensorData = inputs[9] ?? { dtype: 'f64', shape: [batch, tokens], data: Float64Array.from(ids) };
      return rotateHeads(x, need(inputs, 7, where), need(inputs, 8, where), positions, {
        heads: x.shape[1]!,
        rotated: 0,
        interleaved: node.int('rotary_interleaved', 0) === 1,
        where,
      });
    };
    const room = Math.max(inputs[3]?.shape[2] ?? 0, total);
    const keys = append(inputs[3], turned(key), pasts, room);
    const values = append(inputs[4], value, pasts, room);
    const window = node.int('local_window_size', -1);
    const scale = node.float('scale', 0);
    const { y } = attend(
      {
        q: turned(query),
        k: keys,
        v: values,
        mask: causalMask(pasts, tokens, room, window, inputs[10]),
        lengths: undefined,
        past: 0,
      },
      {
        scale: scale === 0 ? 1 / Math.sqrt(size) : scale,
        causal: false,
        softcap: node.float('softcap', 0),
        scoreMode: -1,
        softmaxType: undefined,
      },
    );
    const joined = transposeData(castData({ dtype: 'f64', shape: query.shape, data: y }, query.dtype), [0, 2, 1, 3]);
    return [{ ...joined, shape: [batch, tokens, query.shape[1]! * size] }, keys, values];
  },
});

/** Query, key and value as [batch, heads, tokens, size], from separate inputs or from one packed tensor. */
function separate(
  inputs: readonly (TensorData | undefined)[],
  node: Node,
): { query: TensorData; key: TensorData; value: TensorData } {
  const where = nodeName(node);
  const heads = node.int('num_heads', 1);
  const kvHeads = node.int('kv_num_heads', 1);
  const first = need(inputs, 0, where);
  if (inputs[1])
    return {
      query: splitHeads(first, heads, where),
      key: splitHeads(inputs[1], kvHeads, where),
      value: splitHeads(need(inputs, 2, where), kvHeads, where),
    };
  const all = splitHeads(first, heads + 2 * kvHeads, where);
  return {
    query: sliceAxis(all, 1, 0, heads),
    key: sliceAxis(all, 1, heads, heads + kvHeads),
    value: sliceAxis(all, 1, heads + kvHeads, heads + 2 * kvHeads),
  };
}

/** The present: each sequence's past, then its new rows, in a buffer of `room` rows. */
function append(past: TensorData | undefined, fresh: TensorData, pasts: readonly number[], room: number): TensorData {
  const [batch, heads, tokens, size] = fresh.shape as [number, number, number, number];
  const out = newArray(fresh.dtype, batch * heads * room * size) as Float32Array;
  const rows = past?.shape[2] ?? 0;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const plane = b * heads + h;
      if (past)
        out.set(
          (past.data as Float32Array).subarray(plane * rows * size, (plane + 1) * rows * size),
          plane * room * size,
        );
      const from = plane * tokens * size;
      // Rows behind a sequence's own end are padding and may not fit.
      const count = Math.min(tokens, room - pasts[b]!);
      out.set((fresh.data as Float32Array).subarray(from, from + count * size), (plane * room + pasts[b]!) * size);
    }
  }
  return { dtype: fresh.dtype, shape: [batch, heads, room, size], data: out };
}

/** Token t of a sequence sees keys up to its own place, the last `window` of them if that is not negative. */
function causalMask(
  pasts: readonly number[],
  tokens: number,
  keys: number,
  window: number,
  bias: TensorData | undefined,
): TensorData {
  const out = new Float64Array(pasts.length * tokens * keys);
  const extra = bias && readFloats(bias);
  pasts.forEach((past, b) => {
    for (let t = 0; t < tokens; t++) {
      for (let j = 0; j < keys; j++) {
        const place = past + t;
        const seen = j <= place && (window < 0 || j > place - window);
        out[(b * tokens + t) * keys + j] = seen ? 0 : Number.NEGATIVE_INFINITY;
      }
    }
  });
  const mask: TensorData = { dtype: 'f64', shape: [pasts.length, 1, tokens, keys], data: out };
  return bias && extra
    ? combineElements(mask, { ...bias, dtype: 'f64', data: extra }, { real: (x, y) => x + y }, 'f64', 'attention_bias')
    : mask;
}

export const CONTRIB_OPS: readonly OpDefinition[] = [
  activation('Gelu', () => geluExact),
  activation('BiasGelu', () => geluExact),
  activation('FastGelu', () => geluTanh),
  activation('QuickGelu', (node) => {
    const alpha = node.float('alpha', Math.fround(1.702));
    return (x) => x * sigmoid(alpha * x);
  }),
  matMulNBits,
  groupQueryAttention,
  // ONNX Runtime's own forms of QuantizeLinear and DequantizeLinear, for types that ONNX had not yet (16 and 4 bits).
  ...QUANTIZE_OPS.filter((op) => op.name !== 'DynamicQuantizeLinear').map((op) => ({
    ...op,
    domain: DOMAIN,
    since: 1,
  })),
];
