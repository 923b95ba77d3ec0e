import type { JsonObject } from '../json.ts';
import { type ModuleTensors, readWords, unpackAcross } from './module-tensors.ts';
import type { StoredWeight } from './stored-weight.ts';

/** Columns of a word's eight integers, from the low bits up (AutoAWQ's GEMM packing). */
const ORDER = [0, 2, 4, 6, 1, 3, 5, 7];

/**
 * A layer as AutoAWQ's GEMM version writes it:
 *
 *     qweight i32 [K, N / 8], qzeros i32 [G, N / 8]   8 output channels a word, in an order of their own
 *     scales  f16 [G, N],  w = scale * (q - zero)
 *
 * @throws IM405 for other versions, widths, and tensors that contradict each other
 */
export function readAwq(module: ModuleTensors, config: JsonObject): StoredWeight {
  const qweight = module.get('qweight', ['i32'], 2);
  const { scales, shape } = module.scales('scales');
  const [inputs, words] = qweight.shape as [number, number];
  const [groups, outputs] = shape as [number, number];
  if (shape.length !== 2 || words * 8 !== outputs)
    module.refuse(`scales are [${shape}], qweight is [${qweight.shape}]`);
  const asked = Number(config.group_size ?? -1);
  const group = asked > 0 ? asked : inputs;
  if (Math.ceil(inputs / group) !== groups) module.refuse(`${groups} groups of ${group} for ${inputs} input channels`);
  const unpack = (tensor: typeof qweight, rows: number): Uint8Array =>
    unpackAcross(readWords(tensor), rows, outputs, 4, ORDER);
  const qzeros = module.find('qzeros') && module.get('qzeros', ['i32'], 2);
  if (qzeros && (qzeros.shape[0] !== groups || qzeros.shape[1] !== words))
    module.refuse(`qzeros are [${qzeros.shape}], scales are [${shape}]`);
  return {
    inputs,
    outputs,
    bits: 4,
    integers: () => unpack(qweight, inputs),
    scales,
    ...(qzeros ? { zeros: Int32Array.from(unpack(qzeros, groups)) } : {}),
    group,
    format: `awq, 4 bits, ${group === inputs ? 'per channel' : `groups of ${group}`}`,
  };
}
