import { findToolchain, toolchainStatus } from '../../../../targets/qnn/toolchain.ts';
import { toolchain as qnn } from '../../qnn/toolchain-or-skip.ts';

/** Whether LiteRT's plugins and Qualcomm's compiler are installed. Absent: in CI a failure, elsewhere a loud skip. */
export const hasPlugins: boolean = (() => {
  if (findToolchain('litert') && qnn) return true;
  const why = JSON.stringify(toolchainStatus().filter(({ name }) => name === 'litert'));
  if (process.env.CI) throw new Error(`the litert toolchain is absent: in CI that is a failure (${why})`);
  console.warn(`SKIPPED: the litert toolchain is not installed, its tests are skipped (${why})`);
  return false;
})();
