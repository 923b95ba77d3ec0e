import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'shared', 'material');

/** True where the shared test material lies beside the checkout; in CI its absence is a failure, never a skip. */
export const hasMaterial: boolean = (() => {
  if (existsSync(root)) return true;
  if (process.env.CI) throw new Error('the test material is absent: in CI that is a failure');
  console.warn('SKIPPED: the shared test material is absent, tests on real models are skipped');
  return false;
})();

/** Absolute path of a file of the shared test material, such as `stories260k/hf`. */
export function materialPath(...parts: string[]): string {
  return join(root, ...parts);
}
