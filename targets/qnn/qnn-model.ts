import { mkdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { htpFormat } from '../../calibration/recipe.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import { runPasses } from '../../compiler/pass.ts';
import { makeTemporaryFolder, pickJavaScriptEngine } from '../../compiler/runtime/engine.ts';
import { openWithJavaScript } from '../../compiler/runtime/onnxruntime.ts';
import { NativeHost, type SessionOptions } from '../../compiler/runtime/ort-native.ts';
import { withRealPorts } from '../../compiler/runtime/real-ports.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import { lowerForHtp } from '../../passes/pipelines.ts';
import { type ModelTarget, modelEncodings, modelPorts } from '../model-target.ts';
import { requireFeature, requireStatic, socSupports } from '../socs.ts';
import { compileContext } from './compile-context.ts';
import { checkReadBack, quantizePorts } from './qnn-target.ts';
import { requireToolchain, type Toolchain } from './toolchain.ts';

/**
 * Any graph for Qualcomm HTP: QDQ ONNX with integer ports, compiled to a context binary of its own, which the simulator
 * executes as it is. Without encodings the graph runs in half floats.
 */
export const qnnModelTarget: ModelTarget = {
  name: 'qnn',
  // Before v73 there is no product of two 16-bit operands (facts of the vendor's simulator).
  format: (soc) => ({
    ...htpFormat,
    ...(socSupports(soc, 'matmul-16x16') ? {} : { rightOperand: 'u8' as const }),
    halfFloats: socSupports(soc, 'fp16'),
  }),
  lower: (module) => runPasses(module, lowerForHtp),
  async emit(quantized, context) {
    requireStatic(quantized.recipe);
    const { plan } = quantized;
    // Integer ports are this target's own: comparisons run the graph with float ports.
    const module = cloneModule(quantized.module);
    const toolchain = context.toolchain ?? requireToolchain('qnn');
    const { soc } = context;
    if ([...plan.weights.values()].some(({ form }) => form.block > 0))
      requireFeature(soc, 'lpbq', 'use --block 0, or --scheme w8a16');
    const folder = join(context.out, 'qnn');
    const sources = join(folder, 'qdq');
    mkdirSync(sources, { recursive: true });
    const ports = quantizePorts(module.graph());
    const written = writeOnnx(module, join(sources, 'model.onnx'));
    const [source, ...data] = written.files.map(({ path }) => basename(path));
    const compiled = await compileContext(
      toolchain,
      [{ name: 'model', path: join(sources, source!), externalData: data }],
      {
        soc,
        share: false,
        outputFolder: folder,
        threads: context.threads,
        ...(context.signal ? { signal: context.signal } : {}),
      },
    );
    checkReadBack(compiled.contexts.values(), ports);
    const [file] = compiled.files;
    return {
      file: `qnn/${basename(file!.onnx)}`,
      source: `qnn/qdq/${source}`,
      ...modelPorts(module.graph()),
      execution: 'executed',
      facts: { soc: soc.number, arch: `v${soc.arch}` },
      files: [
        `qnn/${basename(file!.onnx)}`,
        `qnn/${basename(file!.binary)}`,
        ...[source!, ...data].map((name) => `qnn/qdq/${name}`),
      ],
    };
  },
  async open(folder, target, options) {
    const toolchain = options.toolchain ?? requireToolchain('qnn');
    // A context binary knows its SoC; asking for one again can refuse it (facts qnn-htp, pitfall 5).
    const runner = await openInHost(toolchain, join(folder, target.file), { provider: 'qnn' });
    return withRealPorts(runner, modelEncodings(target));
  },
  async openTwin(folder, target) {
    const runner = await openWithJavaScript(join(folder, target.source!), pickJavaScriptEngine());
    return withRealPorts(runner, modelEncodings(target));
  },
  async openModule(module, soc, options) {
    const toolchain = options.toolchain ?? requireToolchain('qnn');
    const folder = makeTemporaryFolder();
    try {
      quantizePorts(module.graph());
      const path = join(folder.path, 'model.onnx');
      writeOnnx(module, path);
      const runner = await openInHost(toolchain, path, { provider: 'qnn', soc: soc.number });
      return withRealPorts(runner, modelEncodings(modelPorts(module.graph())));
    } finally {
      folder.release();
    }
  },
};

/** A session in a process of its own, which ends with it. */
async function openInHost(toolchain: Toolchain, path: string, options: SessionOptions): Promise<Runner> {
  const host = await NativeHost.start(toolchain);
  try {
    const session = await host.openSession(path, options);
    return {
      engine: session.engine,
      inputs: session.inputs,
      outputs: session.outputs,
      run: (feeds, outputs) => session.run(feeds, outputs),
      close: async () => {
        await session.close();
        await host.close();
      },
    };
  } catch (error) {
    await host.close();
    throw error;
  }
}
