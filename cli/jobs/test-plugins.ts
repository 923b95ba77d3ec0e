import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { quantizeGraph } from '../../calibration/quantize-graph.ts';
import { litertFormat, makeRecipe } from '../../calibration/recipe.ts';
import { randomSamples } from '../../calibration/samples.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { createProgress } from '../../compiler/progress.ts';
import { makeTemporaryFolder } from '../../compiler/runtime/engine.ts';
import type { NpuReport } from '../../evaluation/compare-npu.ts';
import { findToolchain } from '../../targets/qnn/toolchain.ts';
import { findSoc } from '../../targets/socs.ts';
import type { NpuRequest } from '../../targets/tflite/npu/vendors.ts';
import { tfliteModelTarget } from '../../targets/tflite/tflite-model.ts';
import { addModelNpu } from './add-npu.ts';

const MATMUL = `npuir 1
opset 21

graph @self_test
  in %x : f32[1,8,64]
  %w : f32[64,64] = const rand(7, uniform -0.1 0.1)
  %y : f32[1,8,64] = MatMul(%x, %w)
  out %y
`;

/**
 * Compiles one MatMul with every LiteRT plugin whose compiler is there, runs what came out and compares it with LiteRT: shows
 * that the plugins work on this machine, in about two seconds.
 * @throws what the plugins throw
 */
export async function testPlugins(): Promise<readonly NpuReport[]> {
  const requests: NpuRequest[] = [
    { vendor: 'openvino', soc: 'LNL' },
    ...(findToolchain('qnn') ? [{ vendor: 'qualcomm', soc: 'SM8750' } as const] : []),
  ];
  const module = parseModule(MATMUL);
  const { feeds } = randomSamples(module.graph(), 2, 1);
  const quantized = await quantizeGraph({
    module,
    feeds,
    recipe: makeRecipe('w8a16'),
    format: litertFormat,
    kernels: wasmKernels,
  });
  const folder = makeTemporaryFolder();
  try {
    const out = folder.path;
    mkdirSync(join(out, 'tflite'));
    const made = await tfliteModelTarget.emit(quantized, { out, soc: findSoc('SM8750'), threads: 1 });
    const inputs = { npu: { requests, claims: false }, out, progress: createProgress('quiet') };
    return (await addModelNpu(made, quantized, feeds, inputs)).reports;
  } finally {
    folder.release();
  }
}
