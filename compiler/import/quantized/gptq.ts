import type { JsonObject } from '../json.ts';
import { activationOrder, type ModuleTensors, readWords, unpackAcross, unpackDown } from './module-tensors.ts';
import type { StoredWeight } from './stored-weight.ts';

/**
 * A layer as AutoGPTQ and GPTQModel write it:
 *
 *     qweight i32 [K * bits / 32, N]   input channels from the low bits up
 *     qzeros  i32 [G, N * bits / 32]   output channels likewise; one less than the zero point in format `gptq`, the zero
 *                                      point itself in `gptq_v2`
 *     scales  f16 [G, N],  g_idx i32 [K] the group of each input channel, w = scale * (q - zero)
 *
 * (GPTQModel's packing code and its conversion between the two formats.)
 * @throws IM405 for widths other than 4 and 8 bits, layouts of one kernel, tensors that contradict each other
 */
export function readGptq(module: ModuleTensors, config: JsonObject): StoredWeight {
  const qweight = module.get('qweight', ['i32'], 2);
  const qzeros = module.get('qzeros', ['i32'], 2);
  const { scales, shape } = module.scales('scales');
  const outputs = qweight.shape[1]!;
  const groups = shape[0]!;
  if (shape.length !== 2 || shape[1] !== outputs) module.refuse(`scales are [${shape}], qweight is [${qweight.shape}]`);
  const index = module.find('g_idx');
  const inputs = index?.shape[0] ?? (qweight.shape[0]! * 32) / Number(config.bits);
  const bits = (qweight.shape[0]! * 32) / inputs;
  if (bits !== 4 && bits !== 8) module.refuse(`weights of ${bits} bits; 4 and 8 are taken over`);
  const width = bits as 4 | 8;
  if (qzeros.shape[0] !== groups || qzeros.shape[1] !== Math.ceil((outputs * width) / 32))
    module.refuse(`qzeros are [${qzeros.shape}], scales are [${shape}]`);
  const asked = Number(config.group_size ?? -1);
  const group = asked > 0 ? asked : inputs;
  if (Math.ceil(inputs / group) !== groups) module.refuse(`${groups} groups of ${group} for ${inputs} input channels`);
  const order = index && activationOrder(index.toNumbers(), group);
  if (order?.some((each) => each >= groups)) module.refuse(`g_idx names groups beyond the ${groups} that there are`);
  const zeros = Int32Array.from(unpackAcross(readWords(qzeros), groups, outputs, width));
  if (String(config.checkpoint_format ?? 'gptq') !== 'gptq_v2') {
    // Readers disagree whether it wraps around to 0 or is 16: it was written by something that lost the difference.
    if (zeros.includes(2 ** width - 1))
      module.refuse(
        'a zero point of all ones, which format "gptq" cannot tell from 0',
        'convert the checkpoint to gptq_v2, or quantize symmetrically',
      );
    for (let i = 0; i < zeros.length; i++) zeros[i] = zeros[i]! + 1;
  }
  return {
    inputs,
    outputs,
    bits: width,
    integers: () => unpackDown(readWords(qweight), outputs, inputs, width),
    scales,
    zeros,
    group,
    ...(order ? { order } : {}),
    format: `gptq, ${width} bits, ${group === inputs ? 'per channel' : `groups of ${group}`}`,
  };
}
