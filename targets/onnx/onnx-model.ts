import { mkdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { onnxFormat } from '../../calibration/recipe.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { runPasses } from '../../compiler/pass.ts';
import { pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { type ModelTarget, modelPorts } from '../model-target.ts';
import { writeEncodings } from './encodings-json.ts';

/**
 * Any graph as QDQ ONNX with float inputs and outputs; its encodings as AIMET-style JSON, and the float model that they are of:
 * scales have moved between its convolutions, and its weights lie on their grids.
 */
export const onnxModelTarget: ModelTarget = {
  name: 'onnx',
  format: () => onnxFormat,
  lower: (module) => runPasses(module, []),
  async emit({ module, recipe }, { out, encodings }) {
    const folder = join(out, 'onnx');
    mkdirSync(folder, { recursive: true });
    const written = writeOnnx(module, join(folder, 'model.onnx'));
    const files = written.files.map(({ path }) => `onnx/${basename(path)}`);
    if (recipe.scheme !== 'fp16') {
      writeEncodings(module.graph(), join(folder, 'encodings.json'), encodings);
      const float = writeOnnx(withoutEncodings(module), join(folder, 'float.onnx'));
      files.push('onnx/encodings.json', ...float.files.map(({ path }) => `onnx/${basename(path)}`));
    }
    return { file: 'onnx/model.onnx', ...modelPorts(module.graph()), execution: 'executed', facts: {}, files };
  },
  open: (folder, target) => openWithJavaScript(join(folder, target.file), pickJavaScriptEngine()),
};

function withoutEncodings(module: Module): Module {
  const copy = cloneModule(module);
  for (const value of copy.graph().values) delete value.encoding;
  return copy;
}
