import { findToolchain, toolchainStatus } from '../../../targets/qnn/toolchain.ts';

/** The installed QNN toolchain. Absent: in CI a failure, elsewhere a loud skip. */
export const toolchain = (() => {
  const found = findToolchain('qnn');
  if (found) return found;
  const why = JSON.stringify(toolchainStatus());
  if (process.env.CI) throw new Error(`the QNN toolchain is absent: in CI that is a failure (${why})`);
  console.warn(`SKIPPED: the QNN toolchain is not installed, its tests are skipped (${why})`);
  return undefined;
})();
