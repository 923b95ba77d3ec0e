import { NpucError } from '../../compiler/errors.ts';
import type { NativeToolchain } from '../../compiler/runtime/ort-native.ts';

/**
 * Compares the vendor's version that made an artifact with the one that is to load it. Newer binaries are refused by older
 * libraries, with nothing but an "invalid argument"; older ones load.
 * @param made `toolchain` of the artifact's manifest
 * @returns what to tell the user, when the versions differ
 * @throws QN015 when the artifact is newer than the toolchain
 */
export function checkMadeWith(
  made: Readonly<Record<string, string>>,
  toolchain: NativeToolchain,
  where: string,
): string | undefined {
  const now = toolchain.versions.qairt;
  if (made.qairt === undefined || now === undefined || made.qairt === now) return undefined;
  const versions = `compiled with QAIRT ${made.qairt} (onnxruntime-qnn ${made['onnxruntime-qnn']})`;
  if (compareVersions(made.qairt, now) < 0) return `${where} was ${versions}, and is run with ${now}`;
  throw new NpucError('QN015', {
    message: `${where} was ${versions}; the chosen toolchain has ${now}, which does not load newer binaries`,
    where,
    hint: `NPUC_QNN=${made['onnxruntime-qnn']} chooses another (npuc toolchain list); or compile again`,
  });
}

function compareVersions(a: string, b: string): number {
  const [x, y] = [a, b].map((version) => version.split('.').map(Number));
  for (let i = 0; i < Math.max(x!.length, y!.length); i++) {
    const difference = (x![i] ?? 0) - (y![i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
