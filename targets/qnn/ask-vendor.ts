import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { makeTemporaryFolder } from '../../compiler/runtime/engine.ts';
import { NativeHost } from '../../compiler/runtime/ort-native.ts';
import type { Soc } from '../socs.ts';
import { parseCompilerErrors, parseRefusals, type Refusal } from './parse-log.ts';
import { quantizePorts } from './qnn-target.ts';
import type { Toolchain } from './toolchain.ts';

/** What the vendor's own validator says of a graph. */
export interface VendorVerdict {
  /** Nodes that it refuses, by their names in the graph. */
  readonly refusals: readonly Refusal[];
  /** What the graph compiler says where it takes every node and fails all the same. */
  readonly errors: readonly string[];
}

/**
 * Compiles a graph with the encodings that it has, for the simulator, and reads the verbose log: only there the vendor gives
 * reasons. The module's integer ports are set on the way.
 * @throws RT201 when the toolchain cannot be loaded
 */
export async function askVendor(module: Module, soc: Soc, toolchain: Toolchain): Promise<VendorVerdict> {
  const folder = makeTemporaryFolder();
  try {
    const path = join(folder.path, 'model.onnx');
    quantizePorts(module.graph());
    writeOnnx(module, path);
    const host = await NativeHost.start(toolchain, { workFolder: folder.path, logSeverity: 0 });
    try {
      const session = await host.openSession(path, { provider: 'qnn', soc: soc.number });
      await session.close();
      return { refusals: [], errors: [] };
    } catch (error) {
      if (!(error instanceof NpucError) || (error.code !== 'RT110' && error.code !== 'RT202')) throw error;
      const log = host.log();
      const refusals = error.code === 'RT110' ? parseRefusals(log) : [];
      if (refusals.length > 0) return { refusals, errors: [] };
      const errors = parseCompilerErrors(log);
      return { refusals, errors: errors.length > 0 ? errors : [error.message.split('\n')[0]!] };
    } finally {
      await host.kill();
    }
  } finally {
    folder.release();
  }
}
