import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { type Module, tensorType } from '../../compiler/ir/graph.ts';
import { type TensorData, toFloats } from '../../compiler/ir/tensor.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { createDifferenceSums, signalToNoise } from '../../compiler/kernels/kernels.ts';
import { DecoderSession, MASK_VALUE } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { tapModule } from '../../compiler/runtime/taps.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { compareRows } from '../compare-chunk.ts';
import { type CalibratedInputs, CHUNK, type DecoderSteps, REQUEST, WINDOW } from './measure-decoder.ts';
import type { MeasuredStage } from './measurement.ts';

/** dB that floats are worth at best and at worst: 144 in one number, less in sums of thousands of terms in another order. */
const FLOAT_DB = { most: 110, least: 80 };
/** dB that another engine may lose against that of the baseline: a hundred times the noise is no order of sums. */
const ENGINE_DB = 20;

/**
 * Whether a step of lowering changes no more than the order of sums does.
 * @param before its dB in the baseline: one that was no better when it was reviewed is accepted, half floats for one
 */
export function keepsFloats(sqnr: number, before: number | undefined): boolean {
  if (before === undefined) return sqnr >= FLOAT_DB.least;
  return sqnr >= Math.min(FLOAT_DB.most, before - ENGINE_DB);
}

/**
 * The float model as it was imported, as it is lowered, and as the target computes it, each against the one before, on one
 * chunk of held-out text. None of these steps may change what is computed.
 */
export async function compareStages(
  inputs: CalibratedInputs,
  steps: DecoderSteps,
  decoder: QuantizedDecoder,
): Promise<MeasuredStage[]> {
  const semantic = steps.build(inputs.config, inputs.weights, WINDOW, true);
  const lowered = steps.lower(inputs.config, inputs.weights, CHUNK, WINDOW);
  const [imported, plain] = [await runRaw(inputs, semantic, ['logits']), await runRaw(inputs, lowered, ['logits'])];
  const stages = [{ name: 'apply-io-contract', sqnr: compare(imported.logits!, plain.logits!) }];
  const ids = inputs.text.windows[0]!.slice(0, CHUNK);
  const open = async (module: Module, contract: typeof plainContract): Promise<DecoderSession> =>
    new DecoderSession({
      protocol: makeProtocol(inputs.config, contract, WINDOW),
      graphs: new Map([[CHUNK, await openModule(module, inputs.open)]]),
      ...(contract.embedding === 'embeds' ? { embedding: decoder.embed } : {}),
    });
  const float = await open(lowered, plainContract);
  const target = await open(decoder.lowerFloat(REQUEST), decoder.contract);
  try {
    const { sqnr } = compareRows(await float.feed(ids, 'all'), await target.feed(ids, 'all'));
    stages.push({ name: `lower for ${inputs.target}`, sqnr });
  } finally {
    await float.close();
    await target.close();
  }
  return stages;
}

/** The first value, in order of computation, that the lowered graph computes otherwise than the imported one. */
export async function findStageValue(
  inputs: CalibratedInputs,
  steps: DecoderSteps,
): Promise<{ readonly name: string; readonly from: readonly string[]; readonly sqnr: number } | undefined> {
  const semantic = steps.build(inputs.config, inputs.weights, WINDOW, true);
  const lowered = steps.lower(inputs.config, inputs.weights, CHUNK, WINDOW);
  const known = semantic.graph();
  const nodes = lowered.graph().nodes.flatMap((node) => node.outputs.map((value) => ({ node, value: value! })));
  const shared = nodes.filter(({ value }) => value.dtype === 'f32' && known.find(value.name)?.producer);
  const names = shared.map(({ value }) => value.name);
  const expected = await runRaw(inputs, semantic, names);
  const got = await runRaw(inputs, lowered, names);
  for (const { node, value } of shared) {
    const sqnr = compare(expected[value.name]!, got[value.name]!);
    if (!(sqnr >= FLOAT_DB.most - ENGINE_DB)) return { name: value.name, from: node.from, sqnr };
  }
  return undefined;
}

function compare(expected: TensorData, got: TensorData): number {
  const sums = createDifferenceSums();
  wasmKernels.accumulateDifference(toFloats(expected), toFloats(got), sums);
  return signalToNoise(sums);
}

/** Runs the imported or the plainly lowered decoder, which have the same ports, on the first chunk from an empty cache. */
async function runRaw(
  { config, text, open }: CalibratedInputs,
  module: Module,
  names: readonly string[],
): Promise<Record<string, TensorData>> {
  const positions = module.graph().find(plainContract.names.positions!);
  // The runtime takes positions of RotaryEmbedding in 64 bits only.
  const wide = module.graph().nodes.some(({ op }) => op === 'RotaryEmbedding');
  if (wide && positions) positions.type = tensorType('i64', [1, 'tokens']);
  const runner = await openModule(tapModule(module, names), open);
  const past = WINDOW - CHUNK;
  const ids = Array.from({ length: CHUNK }, (_, i) => text.windows[0]![i] ?? 0);
  const mask = new Float32Array(CHUNK * WINDOW).fill(MASK_VALUE);
  for (let row = 0; row < CHUNK; row++) mask.fill(0, row * WINDOW + past, row * WINDOW + past + row + 1);
  const order = ids.map((_, i) => i);
  const feeds: Record<string, TensorData> = {
    input_ids: { dtype: 'i32', shape: [1, CHUNK], data: Int32Array.from(ids) },
    position_ids: wide
      ? { dtype: 'i64', shape: [1, CHUNK], data: BigInt64Array.from(order, BigInt) }
      : { dtype: 'i32', shape: [1, CHUNK], data: Int32Array.from(order) },
    attention_mask: { dtype: 'f32', shape: [1, 1, CHUNK, WINDOW], data: mask },
  };
  const shape = [1, config.keyValueHeads, past, config.headDim];
  for (let layer = 0; layer < config.layers; layer++) {
    for (const kind of ['key', 'value'])
      feeds[`past_${kind}_${layer}`] = {
        dtype: 'f32',
        shape,
        data: new Float32Array(past * config.keyValueHeads * config.headDim),
      };
  }
  try {
    return await runner.run(feeds, names);
  } finally {
    await runner.close();
  }
}
