import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { hasFloatActivations, litertFormat } from '../../calibration/recipe.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import { runPasses } from '../../compiler/pass.ts';
import { openLitert } from '../../compiler/runtime/litert.ts';
import { withRealPorts } from '../../compiler/runtime/real-ports.ts';
import { decomposeHardSwish } from '../../passes/decompose-hard-swish.ts';
import { lowerForTflite } from '../../passes/pipelines.ts';
import { storeWeightsF16 } from '../../passes/store-weights-f16.ts';
import { type ModelTarget, modelEncodings, modelPorts } from '../model-target.ts';
import { lowerModel } from './graph/lower-model.ts';
import { writeTflite } from './write.ts';

const FILE = 'tflite/model.tflite';
const QUANTIZED = 'tflite/model.quantized-io.tflite';

/** The name of the one signature, which is also that of the subgraph. */
const SIGNATURE = 'serving_default';

/**
 * Any graph as one TFLite file with float ports in the model's own layout, which LiteRT executes. Without encodings its
 * weights are half floats. With `io: quantized` a second file has integer ports, where values have encodings, and is the one
 * that runs.
 */
export const tfliteModelTarget: ModelTarget = {
  name: 'tflite',
  format: () => litertFormat,
  lower: (module, _soc, recipe) => {
    // HARD_SWISH has kernels for floats and 8 bits, and none for 16.
    const wide = recipe?.activation === 16 && !hasFloatActivations(recipe);
    return runPasses(module, wide ? [decomposeHardSwish, ...lowerForTflite] : lowerForTflite);
  },
  async emit(quantized, { out, io }) {
    mkdirSync(join(out, 'tflite'), { recursive: true });
    const module = cloneModule(quantized.module);
    if (quantized.recipe.scheme === 'fp16') runPasses(module, [storeWeightsF16()]);
    const graph = module.graph();
    graph.name = SIGNATURE;
    const { model, operators, transposes, floats } = lowerModel(graph, 'float');
    writeTflite(join(out, FILE), model);
    const ports = [...graph.inputs, ...graph.outputs].filter(({ encoding }) => encoding);
    const integers = io === 'quantized' && ports.length > 0;
    if (integers) {
      for (const value of ports) graph.quantizedPorts.add(value);
      writeTflite(join(out, QUANTIZED), lowerModel(graph, 'quantized').model);
    }
    const { inputs, outputs } = modelPorts(graph);
    const used = new Set(graph.inputs.filter((value) => graph.isUsed(value)).map(({ name }) => name));
    return {
      file: integers ? QUANTIZED : FILE,
      // A signature has no input that nothing reads.
      inputs: inputs.filter(({ name }) => used.has(name)),
      outputs,
      execution: 'executed',
      facts: {
        io: integers ? 'quantized' : 'float',
        operators,
        transposes,
        floatOperators: [...floats.values()].reduce((sum, nodes) => sum + nodes.length, 0),
      },
      files: integers ? [FILE, QUANTIZED] : [FILE],
    };
  },
  open: async (folder, target) =>
    withRealPorts(await openLitert(join(folder, target.file), SIGNATURE), modelEncodings(target)),
};
