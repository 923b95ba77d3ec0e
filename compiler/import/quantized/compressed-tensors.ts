import {
  activationOrder,
  type ModuleTensors,
  readWords,
  transposeBytes,
  unpackAcross,
  unpackDown,
} from './module-tensors.ts';
import type { StoredWeight } from './stored-weight.ts';

/**
 * A layer in the formats `pack-quantized` and `int-quantized` of compressed-tensors (llm-compressor writes them):
 *
 *     weight_packed i32 [N, K * bits / 32] with weight_shape [2]   input channels from the low bits up, each plus 2^(bits-1)
 *     weight i8 [N, K]                                             signed, unpacked
 *     weight_scale [N, G] or [N, 1] or [1]
 *     weight_zero_point   signed i8 [N, G], or i32 [N * bits / 32, G] packed along output channels, each plus 2^(bits-1)
 *     weight_g_idx i32 [K]   the group of each input channel, with activation order
 *
 * The tensors say what they are: schemes that differ between layers need no reading of the config's targets.
 * @throws IM405 for other forms, and tensors that contradict each other
 */
export function readCompressedTensors(module: ModuleTensors): StoredWeight {
  const packed = module.find('weight_packed');
  const { outputs, inputs, bits, integers } = packed ? readPacked(module) : readBytes(module);
  const middle = 2 ** (bits - 1);
  const { scales: stored, shape } = module.scales('weight_scale');
  const groups = stored.length === 1 ? 1 : stored.length / outputs;
  if (!Number.isInteger(groups) || (shape.length === 2 && stored.length > 1 && shape[0] !== outputs))
    module.refuse(`weight_scale is [${shape}] for ${outputs} output channels`);
  // The tensors do not say how long a last group of other length is; the format's own writer has none.
  if (inputs % groups !== 0) module.refuse(`${groups} groups do not divide ${inputs} input channels`);
  const group = inputs / groups;
  const turn = <T extends Float32Array | Int32Array>(rows: T, make: (length: number) => T): T => {
    const out = make(groups * outputs);
    for (let n = 0; n < outputs; n++)
      for (let g = 0; g < groups; g++) out[g * outputs + n] = rows[rows.length === 1 ? 0 : n * groups + g]!;
    return out;
  };
  const zeros = readZeros(module, outputs, groups, bits);
  const index = module.find('weight_g_idx')?.toNumbers();
  // An index of -1 was never filled in: groups are neighbours.
  const order = index && !index.includes(-1) ? activationOrder(index, group) : undefined;
  if (index && index.length !== inputs)
    module.refuse(`weight_g_idx has ${index.length} entries for ${inputs} channels`);
  if (order?.some((each) => each >= groups)) module.refuse(`weight_g_idx names groups beyond the ${groups} there are`);
  return {
    inputs,
    outputs,
    bits,
    integers,
    scales: turn(stored, (length) => new Float32Array(length)),
    ...(zeros ? { zeros: turn(zeros, (length) => new Int32Array(length)).map((zero) => zero + middle) } : {}),
    group,
    ...(order ? { order } : {}),
    format: `compressed-tensors, ${bits} bits, ${groups === 1 ? 'per channel' : `groups of ${group}`}`,
  };
}

interface Matrix {
  readonly outputs: number;
  readonly inputs: number;
  readonly bits: 4 | 8;
  readonly integers: () => Uint8Array;
}

function readPacked(module: ModuleTensors): Matrix {
  const packed = module.get('weight_packed', ['i32'], 2);
  const shape = module.get('weight_shape', ['i64', 'i32'], 1).toNumbers();
  const [outputs, inputs] = shape as [number, number];
  const [rows, words] = packed.shape as [number, number];
  const bits = ([4, 8] as const).find((width) => Math.ceil(inputs / (32 / width)) === words);
  if (shape.length !== 2 || rows !== outputs || bits === undefined) {
    return module.refuse(
      `weight_packed is [${packed.shape}] for [${shape}]: neither 4 nor 8 bits`,
      'weights of 4 and 8 bits are taken over',
    );
  }
  const integers = (): Uint8Array =>
    transposeBytes(unpackAcross(readWords(packed), outputs, inputs, bits), outputs, inputs);
  return { outputs, inputs, bits, integers };
}

function readBytes(module: ModuleTensors): Matrix {
  const weight = module.get('weight', ['i8'], 2);
  const [outputs, inputs] = weight.shape as [number, number];
  const integers = (): Uint8Array =>
    transposeBytes(
      weight.read().map((byte) => byte ^ 0x80),
      outputs,
      inputs,
    );
  return { outputs, inputs, bits: 8, integers };
}

/** Signed zero points [N, G]. */
function readZeros(module: ModuleTensors, outputs: number, groups: number, bits: 4 | 8): Int32Array | undefined {
  const stored = module.find('weight_zero_point');
  if (!stored) return undefined;
  if (stored.dtype === 'i8') {
    if (stored.size !== outputs * groups && stored.size !== 1)
      module.refuse(`weight_zero_point is [${stored.shape}] for ${outputs} channels of ${groups} groups`);
    const zeros = Int32Array.from(stored.toNumbers());
    const middle = 2 ** (bits - 1);
    if (zeros.some((zero) => zero < -middle || zero >= middle))
      module.refuse(`a weight_zero_point lies outside ${-middle}..${middle - 1}`);
    return zeros;
  }
  const rows = Math.ceil(outputs / (32 / bits));
  if (stored.dtype !== 'i32' || stored.shape[0] !== rows || stored.shape[1] !== groups)
    module.refuse(`weight_zero_point is ${stored.dtype}[${stored.shape}] for ${outputs} channels of ${groups} groups`);
  const whole = unpackDown(readWords(stored), groups, outputs, bits);
  return Int32Array.from(whole, (zero) => zero - 2 ** (bits - 1));
}
