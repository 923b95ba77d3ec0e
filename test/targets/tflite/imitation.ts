import type { GraphRequest, QuantizedDecoder } from '../../../calibration/quantize-decoder.ts';
import { isDynamic } from '../../../calibration/recipe.ts';
import { runPasses } from '../../../compiler/pass.ts';
import { openModule } from '../../../compiler/runtime/engine.ts';
import { openLitert } from '../../../compiler/runtime/litert.ts';
import type { Runner } from '../../../compiler/runtime/runner.ts';
import { lowerForTflite } from '../../../passes/pipelines.ts';
import { lowerModel } from '../../../targets/tflite/graph/lower-model.ts';
import { imitateKernels } from '../../../targets/tflite/imitate/imitate-kernels.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';

/**
 * A decoder's graph with the quantized kernels written out as plain arithmetic: static schemes on ONNX Runtime; dynamic ones,
 * whose other operators are floats, on LiteRT's float kernels, so that nothing but the quantization can differ.
 */
export async function openImitation(decoder: QuantizedDecoder, request: GraphRequest): Promise<Runner> {
  const module = imitateKernels(decoder.stamp(request));
  if (!isDynamic(decoder.recipe)) return openModule(module);
  runPasses(module, lowerForTflite);
  return openLitert(encodeTflite(lowerModel(module.graph(), 'float').model), request.name);
}
