import { calibrationShape, collectDecoderStatistics, cutWindows } from '../../../calibration/decoder-statistics.ts';
import { type QuantizedDecoder, quantizeDecoder } from '../../../calibration/quantize-decoder.ts';
import { makeRecipe } from '../../../calibration/recipe.ts';
import type { ValueStatistics } from '../../../calibration/statistics.ts';
import { defaultText, readTokens, startTokens } from '../../../calibration/texts.ts';
import { quantizeLazily } from '../../../compiler/export/quantize-constant.ts';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../../compiler/import/decoder-model.ts';
import type { Encoding } from '../../../compiler/ir/encoding.ts';
import { floatAttribute, type Module } from '../../../compiler/ir/graph.ts';
import { Tensor } from '../../../compiler/ir/tensor.ts';
import { pickJavaScriptEngine } from '../../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../../compiler/runtime/onnxruntime.ts';
import { drawWindows } from '../../../evaluation/check/bootstrap.ts';
import {
  type CalibratedInputs,
  DECODER_STEPS,
  type DecoderSteps,
  WINDOW,
} from '../../../evaluation/check/measure-decoder.ts';
import { formatOf } from '../../../targets/index.ts';
import type { TargetName } from '../../../targets/target.ts';

export interface CheckedModel {
  readonly model: DecoderModel;
  readonly windows: readonly (readonly number[])[];
  /** Statistics of a draw of the calibration windows, computed once. */
  inputs(options: {
    readonly scheme: string;
    readonly target?: TargetName;
    readonly seed?: number;
    readonly threads?: number;
    readonly steps?: DecoderSteps;
  }): Promise<CalibratedInputs>;
}

/** A checkpoint for checks, with calibration windows and held-out text of the fixtures. */
export async function openCheckedModel(source: string, calibration: number, held: number): Promise<CheckedModel> {
  const model = readDecoderModel(await openCheckpoint(source));
  const tokenizer = model.checkpoint.tokenizer!;
  const prefix = startTokens(tokenizer);
  const shape = calibrationShape(model.config);
  const text = readTokens(defaultText('calibration'), tokenizer, calibration * shape.window, shape.window);
  const windows = cutWindows(text.ids, shape, calibration, prefix);
  const step = WINDOW - prefix.length;
  const evaluation = readTokens(defaultText('evaluation'), tokenizer, held * step, held * step);
  const kept = new Map<string, ReadonlyMap<string, ValueStatistics>>();
  const heldOut = Array.from({ length: held }, (_, i) => [
    ...prefix,
    ...evaluation.ids.slice(i * step, (i + 1) * step),
  ]);
  return {
    model,
    windows,
    inputs: async ({ scheme, target = 'onnx', seed = 0, threads = 1, steps = DECODER_STEPS }) => {
      const drawn = drawWindows(windows, seed);
      const key = `${seed} ${steps.collect === collectDecoderStatistics}`;
      if (!kept.has(key) || steps.collect !== collectDecoderStatistics)
        kept.set(key, await steps.collect(model.config, model.weights, drawn));
      return {
        name: 'demo',
        digest: 'd'.repeat(64),
        config: model.config,
        weights: model.weights,
        embed: model.embed,
        statistics: kept.get(key)!,
        windows: drawn,
        calibrationDigest: text.digest,
        text: {
          digest: evaluation.digest,
          windows: heldOut,
          prefix: prefix.length,
        },
        recipe: makeRecipe(scheme),
        target,
        ...formatOf(target),
        npuc: '0.1.0',
        threads,
        open: (path) => openWithJavaScript(path, pickJavaScriptEngine(), threads),
      };
    },
  };
}

/** A fault that is put into the steps of a check, and what a check must say of it. */
export interface SeededFault {
  readonly name: string;
  readonly scheme: string;
  readonly steps: DecoderSteps;
  /** Weights as a faulty import reads them. */
  readonly tamper?: (model: DecoderModel) => DecoderModel;
  readonly kind: string;
  /** A name that the culprit must be about. */
  readonly names: RegExp;
  /** Of the culprit. */
  readonly layers: readonly number[] | 'all';
}

const LAYER = 2;

/** Changes every module that a quantized decoder gives. */
function withModules(decoder: QuantizedDecoder, change: (module: Module) => Module): QuantizedDecoder {
  return {
    ...decoder,
    stamp: (request) => change(decoder.stamp(request)),
    lowerFloat: (request) => change(decoder.lowerFloat(request)),
  };
}

/** The weight encodings that a decoder stamps out, changed. */
function withEncodings(
  decoder: QuantizedDecoder,
  change: (name: string, encoding: Encoding) => Encoding,
): QuantizedDecoder {
  const weightEncodings = new Map([...decoder.weightEncodings].map(([name, each]) => [name, change(name, each)]));
  return {
    ...decoder,
    weightEncodings,
    stamp: (request) => {
      const module = decoder.stamp(request);
      for (const [name, encoding] of weightEncodings) {
        const value = module.graph().find(name);
        if (value?.encoding) value.encoding = encoding;
      }
      return module;
    },
  };
}

/** As withEncodings, with the integers that the true scales gave. */
function keepIntegers(
  decoder: QuantizedDecoder,
  change: (name: string, encoding: Encoding) => Encoding,
): QuantizedDecoder {
  const changed = withEncodings(decoder, change);
  return {
    ...changed,
    stamp: (request) => {
      const module = changed.stamp(request);
      for (const [name, encoding] of decoder.weightEncodings) {
        const value = module.graph().find(name);
        if (value?.data && value.encoding !== encoding) value.payload ??= quantizeLazily(value.data, encoding, name);
      }
      return module;
    },
  };
}

const scaled = (encoding: Encoding, factor: number): Encoding => ({
  ...encoding,
  scale: encoding.scale.map((scale) => scale * factor),
});

type Collect = DecoderSteps['collect'];

const withStatistics =
  (change: (name: string, seen: ValueStatistics) => ValueStatistics): Collect =>
  async (...args) =>
    new Map([...(await collectDecoderStatistics(...args))].map(([name, seen]) => [name, change(name, seen)]));

function dropEpsilon(module: Module): Module {
  for (const node of module.graph().nodes)
    if (node.op === 'RMSNormalization') node.attributes.set('epsilon', floatAttribute(0));
  return module;
}

/** The rotary table of one layer's queries, read one position late. */
function shiftQueries(module: Module): Module {
  const graph = module.graph();
  for (const part of ['a_cos', 'b_cos']) {
    const node = graph.find(`layers.${LAYER}.q_rope.${part}`)?.producer;
    const rows = node?.input(1);
    const gather = rows?.producer?.input(0).producer;
    const table = gather?.input(0);
    if (!node || !rows || !gather || !table?.data) continue;
    const [positions, half] = table.data.shape as [number, number];
    const floats = table.data.toFloats();
    const late = new Float32Array(floats.length);
    late.set(floats.subarray(half));
    late.set(floats.subarray((positions - 1) * half), (positions - 1) * half);
    const name = `late.${part}`;
    const shifted = graph.addConstant(`${name}.table`, Tensor.of('f32', [positions, half], late));
    const picked = graph.emit('Gather', [shifted, gather.input(1)], {
      name: `${name}.rows`,
      type: gather.output().type,
      attributes: Object.fromEntries(gather.attributes),
    });
    const shaped = graph.emit('Reshape', [picked, rows.producer!.input(1)], { name, type: rows.type });
    for (const each of [picked, shaped]) each.encoding = rows.encoding;
    node.setInput(1, shaped);
  }
  graph.sortNodes();
  return module;
}

/** Faults that real tools had, one of each kind, in layer 2 where they are of one layer. */
export const FAULTS: readonly SeededFault[] = [
  {
    name: "one layer's scale x 1.5",
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      quantize: async (inputs) =>
        // The integers stay: what they stand for is half as large again.
        keepIntegers(await quantizeDecoder(inputs), (name, encoding) =>
          name === `model.layers.${LAYER}.mlp.down_proj.weight` ? scaled(encoding, 1.5) : encoding,
        ),
    },
    kind: 'weight',
    names: /^model\.layers\.2\.mlp\.down_proj\.weight$/,
    layers: [LAYER],
  },
  {
    name: 'KV range from one sample',
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      // A sample that says one word over and over.
      collect: async (config, weights, windows, options) => {
        const sample = new Array<number>(64).fill(windows[0]![1]!);
        const one = await collectDecoderStatistics(config, weights, [sample], options);
        const all = await collectDecoderStatistics(config, weights, windows, options);
        const cache = /^(new|past)_(key|value)_\d+$|\.(keys|values)$|v_proj$/;
        return new Map([...all].map(([name, seen]) => [name, cache.test(name) ? one.get(name)! : seen]));
      },
    },
    kind: 'range',
    names: /^(new_(key|value)_\d|layers\.\d\.v_proj)$/,
    layers: 'all',
  },
  {
    name: 'a fusion drops epsilon',
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      lower: (...args) => dropEpsilon(DECODER_STEPS.lower(...args)),
      quantize: async (inputs) => withModules(await quantizeDecoder(inputs), dropEpsilon),
    },
    kind: 'pass',
    names: /attn_norm$/,
    layers: [0],
  },
  {
    name: 'mask sentinel -65504',
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      collect: withStatistics((name, seen) =>
        name.endsWith('.scores.masked') || name === 'attention_mask' ? { ...seen, min: -65504 } : seen,
      ),
    },
    kind: 'range',
    names: /scores\.masked$/,
    layers: 'all',
  },
  {
    name: 'off-by-one RoPE position',
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      lower: (...args) => shiftQueries(DECODER_STEPS.lower(...args)),
      quantize: async (inputs) => withModules(await quantizeDecoder(inputs), shiftQueries),
    },
    kind: 'pass',
    names: /^layers\.2\./,
    layers: [LAYER],
  },
  {
    name: 'swapped gate and up weights',
    scheme: 'w8a16',
    steps: DECODER_STEPS,
    tamper: (model) => {
      const [gate, up] = ['gate', 'up'].map((each) => `model.layers.${LAYER}.mlp.${each}_proj.weight`);
      const weights = new Map(model.weights);
      weights.set(gate!, model.weights.get(up!)!).set(up!, model.weights.get(gate!)!);
      return { ...model, weights };
    },
    kind: 'import',
    names: /^model\.layers\.2\.mlp\.(gate|up)_proj\.weight$/,
    layers: [LAYER],
  },
  {
    name: 'embedding at 4 bits',
    scheme: 'w8a16',
    steps: {
      ...DECODER_STEPS,
      quantize: async (inputs) =>
        withEncodings(await quantizeDecoder(inputs), (name, encoding) =>
          name === 'model.embed_tokens.weight' ? scaled(encoding, 127 / 7) : encoding,
        ),
    },
    kind: 'weight',
    names: /^model\.embed_tokens\.weight$/,
    layers: [],
  },
];
