import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeOnnx, writeOnnxBundle } from '../export/onnx.ts';
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

/** Weights above this go into a file of their own: the runtime then maps them and keeps no copy. */
const MAPPED_WEIGHTS = 16 << 20;

/** Opens a module's first graph for running, see openModules. */
export async function openModule(module: Module, open?: OpenEngine): Promise<Runner> {
  return (await openModules([module], open))[0]!;
}

/**
 * Opens the first graphs of modules that share weights. They are written to a temporary folder, weights beside them and
 * shared, so that no copy of them lives in this process; the folder goes when the last runner is closed.
 * @param open the engine; by default the best JavaScript engine there is
 */
export async function openModules(modules: readonly Module[], open?: OpenEngine): Promise<Runner[]> {
  const folder = makeTemporaryFolder();
  const runners: Runner[] = [];
  try {
    const entries = modules.map((module, i) => ({ module, path: join(folder.path, `model_${i}.onnx`) }));
    const bytes = modules.map((module) => [...module.weights].reduce((sum, tensor) => sum + tensor.byteLength, 0));
    if (Math.max(...bytes) >= MAPPED_WEIGHTS) writeOnnxBundle(entries, 'weights.data');
    else for (const { module, path } of entries) writeOnnx(module, path);
    for (const { path } of entries) {
      runners.push(open ? await open(path) : await openWithJavaScript(path, pickJavaScriptEngine()));
    }
  } catch (error) {
    for (const runner of runners) await runner.close();
    folder.release();
    throw error;
  }
  let left = runners.length;
  return runners.map((runner) => ({
    engine: runner.engine,
    inputs: runner.inputs,
    outputs: runner.outputs,
    run: (feeds, outputs) => runner.run(feeds, outputs),
    close: async () => {
      await runner.close();
      if (--left === 0) folder.release();
    },
  }));
}
