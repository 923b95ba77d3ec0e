import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheFolder } from '../compiler/cache.ts';

const root = cacheFolder('models', 'onnx-backend-1.20.1');

/** True where the ONNX backend suite lies in the cache folder. In CI it is downloaded; elsewhere its absence is a loud skip. */
export const hasBackendSuite: boolean = (() => {
  if (existsSync(root)) return true;
  const tool = join(dirname(fileURLToPath(import.meta.url)), 'tools', 'fetch-backend-suite.mjs');
  if (process.env.CI) {
    execFileSync(process.execPath, [tool], { stdio: ['ignore', 'ignore', 'inherit'] });
    return true;
  }
  console.warn(
    'SKIPPED: the ONNX backend suite is absent; `node test/tools/fetch-backend-suite.mjs` downloads it (17 MB)',
  );
  return false;
})();

/** Absolute path of a case such as `node/test_add`, or of a file in it. */
export function backendSuitePath(...parts: string[]): string {
  return join(root, ...parts);
}
