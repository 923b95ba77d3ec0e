import type { ContextInfo } from '../../compiler/runtime/native-qnn-system.ts';
import { NativeHost, type NativeToolchain } from '../../compiler/runtime/ort-native.ts';

export type { ContextGraph, ContextInfo, ContextTensor } from '../../compiler/runtime/native-qnn-system.ts';

/**
 * Reads what an HTP context binary holds: SoC, architecture, and per graph the name, inputs, outputs (type, shape, scale,
 * zero point), bytes of weights, spill-fill and on-chip memory. No backend is involved, so it also works for binaries with
 * shared weights, which cannot be executed on x86. Multi-SoC binaries are another container and are refused.
 * @throws QN014 when the file is not a context binary, RT202 when the vendor's reader crashes on it.
 */
export async function readContextBinary(toolchain: NativeToolchain, path: string): Promise<ContextInfo> {
  const [context] = await readContextBinaries(toolchain, [path]);
  return context!;
}

/** Several binaries in one process. @throws as readContextBinary, for the first that cannot be read */
export async function readContextBinaries(
  toolchain: NativeToolchain,
  paths: readonly string[],
): Promise<ContextInfo[]> {
  const host = await NativeHost.start(toolchain);
  try {
    const contexts: ContextInfo[] = [];
    for (const path of paths) contexts.push(await host.readContext(path));
    return contexts;
  } finally {
    await host.close();
  }
}
