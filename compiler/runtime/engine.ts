import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeOnnx } from '../export/onnx.ts';
import type { Module } from '../ir/graph.ts';
import { type JavaScriptEngine, openWithJavaScript } from './onnxruntime.ts';
import type { Runner } from './runner.ts';

/** Opens an ONNX file in some engine; the native host of the toolchain registers itself as one. */
export type OpenEngine = (path: string) => Promise<Runner>;

const temporaryFolders = new Set<string>();
process.once('exit', () => {
  for (const folder of temporaryFolders) rmSync(folder, { recursive: true, force: true });
});

/** A temporary folder that goes away when it is released, or when the process ends. */
export function makeTemporaryFolder(): { readonly path: string; release(): void } {
  const path = mkdtempSync(join(tmpdir(), 'npuc-'));
  temporaryFolders.add(path);
  return {
    path,
    release: () => {
      rmSync(path, { recursive: true, force: true });
      temporaryFolders.delete(path);
    },
  };
}

/** The JavaScript engine to use: onnxruntime-node where it is installed, else onnxruntime-web. */
export function pickJavaScriptEngine(): JavaScriptEngine {
  try {
    return existsSync(createRequire(import.meta.url).resolve('onnxruntime-node'))
      ? 'onnxruntime-node'
      : 'onnxruntime-web';
  } catch {
    return 'onnxruntime-web';
  }
}

/**
 * Opens a module's first graph for running. It is written to a temporary folder, weights beside it, so that no copy of
 * them lives in this process; the folder goes when the runner is closed.
 * @param open the engine; by default the best JavaScript engine there is
 */
export async function openModule(module: Module, open?: OpenEngine): Promise<Runner> {
  const folder = makeTemporaryFolder();
  try {
    const path = join(folder.path, 'model.onnx');
    writeOnnx(module, path, { externalData: module.weights.size > 0 ? 'auto' : 'never' });
    const runner = open ? await open(path) : await openWithJavaScript(path, pickJavaScriptEngine());
    return {
      engine: runner.engine,
      inputs: runner.inputs,
      outputs: runner.outputs,
      run: (feeds, outputs) => runner.run(feeds, outputs),
      close: async () => {
        await runner.close();
        folder.release();
      },
    };
  } catch (error) {
    folder.release();
    throw error;
  }
}
