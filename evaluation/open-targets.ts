import type { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { decoderTargets } from '../targets/index.ts';
import type { Toolchain } from '../targets/qnn/toolchain.ts';
import type { Soc } from '../targets/socs.ts';
import type { ManifestTarget, TargetName } from '../targets/target.ts';

/** Opens every emitted target of a folder for running. Close the sessions. */
export async function openTargets(
  folder: string,
  targets: Readonly<Partial<Record<TargetName, ManifestTarget>>>,
  soc: Soc,
  toolchain: Toolchain | undefined,
): Promise<Map<TargetName, DecoderSession>> {
  const sessions = new Map<TargetName, DecoderSession>();
  try {
    for (const [name, target] of Object.entries(targets) as [TargetName, ManifestTarget][]) {
      sessions.set(name, await decoderTargets[name].open(folder, target, { soc, ...(toolchain ? { toolchain } : {}) }));
    }
    return sessions;
  } catch (error) {
    for (const session of sessions.values()) await session.close();
    throw error;
  }
}
