// Puts the JSON schema of SARIF 2.1.0 (as Microsoft's matchers for tests carry it, MIT) into npuc's cache folder.
// usage: npm run -s build && node test/tools/fetch-sarif-schema.mjs
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { cacheFolder } from '../../dist/compiler/cache.js';

const PACKAGE = '@microsoft/jest-sarif@1.0.0-beta.0';
const SCHEMA = 'package/lib/schemas/sarif-2.1.0-rtm.5.json';
const SHA256 = '2d99159ae54a3eea97f81781cff48780548657c35949f4b7f25e99a2ba4de4f8';

const target = cacheFolder('schemas', 'sarif-2.1.0.json');
const hasDigest = (path) =>
  existsSync(path) && createHash('sha256').update(readFileSync(path)).digest('hex') === SHA256;

if (!hasDigest(target)) {
  const work = mkdtempSync(join(tmpdir(), 'npuc-sarif-'));
  try {
    const [packed] = JSON.parse(
      execFileSync('npm', ['pack', PACKAGE, '--json', '--pack-destination', work], { cwd: work, encoding: 'utf8' }),
    );
    execFileSync('tar', [
      '-xzf',
      join(work, packed.filename.replaceAll('/', '-').replace('@', '')),
      '-C',
      work,
      SCHEMA,
    ]);
    if (!hasDigest(join(work, SCHEMA))) throw new Error(`${PACKAGE} does not hold the schema that was pinned`);
    mkdirSync(dirname(target), { recursive: true });
    const partial = `${target}.${process.pid}`;
    execFileSync('cp', [join(work, SCHEMA), partial]);
    renameSync(partial, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
console.log(target);
