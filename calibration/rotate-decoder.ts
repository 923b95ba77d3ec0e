import type { DecoderModel } from '../compiler/import/decoder-model.ts';
import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { Statistics } from './statistics.ts';

/** What a rotation changes of a decoder. */
export type DecoderSource = Pick<DecoderModel, 'config' | 'weights' | 'embed'>;

/**
 * Rotates the residual stream, and the values of each head, by fixed orthogonal matrices that are merged into the weights:
 * the logits stay what they are, but outliers of single channels are spread over all (QuaRot 2404.00456, section 4; SpinQuant
 * 2405.16406, R1 and R2). Norm weights move into the matrices behind them first, because a norm commutes with a rotation only
 * without them. Nothing is added to the graph; head and embedding are no longer the same table.
 */
export function rotateDecoder({ config, weights, embed }: DecoderSource): DecoderSource {
  const { hiddenSize, headDim, layers } = config;
  const stream = createRotation(hiddenSize, 1);
  const head = createRotation(headDim, 2);
  const rotated = new Map(weights);
  const readers = (norm: string, names: readonly string[]): void => {
    const gains = weights.get(norm)!;
    for (const name of names) {
      rotated.set(
        name,
        mapRows(rotated.get(name)!, (rows) => {
          multiplyColumns(rows, gains.toFloats());
          stream(rows);
        }),
      );
    }
    rotated.set(norm, Tensor.of('f32', gains.shape, new Float32Array(gains.size).fill(1)));
  };
  const writer = (name: string): void => {
    rotated.set(`${name}.weight`, mapColumns(rotated.get(`${name}.weight`)!, stream));
    rotateBias(rotated, `${name}.bias`, stream);
  };
  rotated.set('model.embed_tokens.weight', mapMatrix(weights.get('model.embed_tokens.weight')!, stream));
  for (let layer = 0; layer < layers; layer++) {
    const at = `model.layers.${layer}`;
    const attention = `${at}.self_attn`;
    rotated.set(`${attention}.v_proj.weight`, mapColumns(rotated.get(`${attention}.v_proj.weight`)!, head));
    rotateBias(rotated, `${attention}.v_proj.bias`, head);
    rotated.set(`${attention}.o_proj.weight`, mapRows(rotated.get(`${attention}.o_proj.weight`)!, head));
    readers(
      `${at}.input_layernorm.weight`,
      ['q_proj', 'k_proj', 'v_proj'].map((name) => `${attention}.${name}.weight`),
    );
    readers(
      `${at}.post_attention_layernorm.weight`,
      ['gate_proj', 'up_proj'].map((name) => `${at}.mlp.${name}.weight`),
    );
    writer(`${attention}.o_proj`);
    writer(`${at}.mlp.down_proj`);
  }
  readers('model.norm.weight', ['lm_head.weight']);
  return {
    config,
    weights: rotated,
    embed: (ids) => {
      const rows = embed(ids).slice();
      stream(rows);
      return rows;
    },
  };
}

/** Largest value of the residual stream, as a multiple of a typical row's root mean square, from which rotation pays. */
const OUTLIERS = 100;

/** Whether single channels of the residual stream dwarf the rest, so that 16 bits of one scale leave the rest few steps. */
export function hasStreamOutliers(config: DecoderConfig, statistics: Statistics): boolean {
  return Array.from({ length: config.layers }, (_, layer) => [
    `layers.${layer}.attn_residual`,
    `layers.${layer}.mlp_residual`,
  ])
    .flat()
    .some((name) => {
      const seen = statistics.get(name);
      return seen !== undefined && Math.max(-seen.min, seen.max) > OUTLIERS * seen.typical;
    });
}

/** Rotates every group of `width` floats of an array in place. */
type Rotation = (values: Float32Array) => void;

/**
 * x S (H ⊗ C): random signs S, a Hadamard matrix H of the largest power of two that divides the width, and the cosine transform
 * C of the rest (orthonormal DCT-II): spreads one channel over all. The same for every model of this width.
 */
export function createRotation(width: number, seed: number): Rotation {
  let power = 1;
  while (width % (2 * power) === 0) power *= 2;
  const rest = width / power;
  const signs = randomSigns(width, seed);
  const cosines = Float64Array.from({ length: rest * rest }, (_, i) => {
    const [row, column] = [Math.floor(i / rest), i % rest];
    return Math.sqrt((column === 0 ? 1 : 2) / rest) * Math.cos((Math.PI * (row + 0.5) * column) / rest);
  });
  const scale = 1 / Math.sqrt(power);
  const row = new Float64Array(width);
  const part = new Float64Array(rest);
  return (values) => {
    for (let start = 0; start < values.length; start += width) {
      for (let i = 0; i < width; i++) row[i] = values[start + i]! * signs[i]!;
      for (let half = rest; half < width; half *= 2) {
        for (let at = 0; at < width; at += 2 * half) {
          for (let i = at; i < at + half; i++) {
            const [a, b] = [row[i]!, row[i + half]!];
            row[i] = a + b;
            row[i + half] = a - b;
          }
        }
      }
      for (let at = 0; at < width; at += rest) {
        if (rest > 1) {
          part.fill(0);
          for (let i = 0; i < rest; i++)
            for (let j = 0; j < rest; j++) part[j] = part[j]! + row[at + i]! * cosines[i * rest + j]!;
          row.set(part, at);
        }
        for (let i = at; i < at + rest; i++) values[start + i] = row[i]! * scale;
      }
    }
  };
}

function randomSigns(count: number, seed: number): Float64Array {
  let state = seed;
  return Float64Array.from({ length: count }, () => {
    // Numerical Recipes' generator; its upper bits are the random ones.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 31 ? 1 : -1;
  });
}

/** A matrix whose rows are changed when it is read. */
function mapMatrix(matrix: Tensor, change: Rotation): Tensor {
  return new Tensor('f32', matrix.shape, {
    kind: 'derived',
    compute: () => {
      const floats = matrix.toFloats().slice();
      change(floats);
      return new Uint8Array(floats.buffer);
    },
  });
}

/** A linear weight [K, N] whose rows [N, K], one per output, are changed. */
function mapRows(weight: Tensor, change: Rotation): Tensor {
  return transposeTensor(mapMatrix(transposeTensor(weight), change));
}

/** A linear weight [K, N] whose columns, one row of outputs for each input, are changed; stored as rows [N, K] as others are. */
function mapColumns(weight: Tensor, change: Rotation): Tensor {
  const [inputs, outputs] = weight.shape as [number, number];
  const compute = (): Uint8Array => transposeTensor(mapMatrix(weight, change)).read();
  return transposeTensor(new Tensor('f32', [outputs, inputs], { kind: 'derived', compute }));
}

function rotateBias(weights: Map<string, Tensor>, name: string, change: Rotation): void {
  const bias = weights.get(name);
  if (bias) weights.set(name, mapMatrix(bias, change));
}

function multiplyColumns(rows: Float32Array, gains: Float32Array): void {
  for (let start = 0; start < rows.length; start += gains.length) {
    for (let i = 0; i < gains.length; i++) rows[start + i] = rows[start + i]! * gains[i]!;
  }
}
