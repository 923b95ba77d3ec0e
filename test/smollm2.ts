import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheFolder } from '../compiler/cache.ts';

const gguf = cacheFolder('models', 'smollm2-135m-instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf');

/** True where SmolLM2-135M-Instruct lies in the cache folder. In CI it is downloaded; elsewhere its absence is a loud skip. */
export const hasSmolLM2: boolean = (() => {
  if (existsSync(gguf)) return true;
  const tool = join(dirname(fileURLToPath(import.meta.url)), 'tools', 'fetch-smollm2.mjs');
  if (process.env.CI) {
    execFileSync(process.execPath, [tool], { stdio: ['ignore', 'ignore', 'inherit'] });
    return true;
  }
  console.warn('SKIPPED: SmolLM2 is absent; `node test/tools/fetch-smollm2.mjs` downloads it (93 MB)');
  return false;
})();

/** The absolute path of SmolLM2-135M-Instruct.Q4_1.gguf. */
export function smolLM2Path(): string {
  return gguf;
}
