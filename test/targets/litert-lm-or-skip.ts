import { findToolchain, type InstalledToolchain } from '../../targets/qnn/toolchain.ts';

/** The installed LiteRT-LM. Absent: in CI a failure, elsewhere a loud skip. */
export const litertLm: InstalledToolchain<'litert-lm'> | undefined = (() => {
  const found = findToolchain('litert-lm');
  if (found) return found;
  if (process.env.CI)
    throw new Error('LiteRT-LM is absent: in CI that is a failure (npuc toolchain install litert-lm)');
  console.warn('SKIPPED: LiteRT-LM is not installed, its tests are skipped (npuc toolchain install litert-lm)');
  return undefined;
})();
