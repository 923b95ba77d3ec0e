// The matrix of SmolLM2-135M-Instruct: every scheme on every SoC, eight graphs in one binary, compiled and read back; written to
// bench/results/matrix.md and .yaml. Nothing is simulated here (test/smollm2 does that).
// npm run test:matrix [-- --soc SM8750 --scheme w4a16 --cache 512,1024 --jobs 2]
// A cell whose figures are in the table for this checkpoint and toolchain is not compiled again. Allow an hour on two cores.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { parse, stringify } from 'yaml';
import { cacheFolder } from '../dist/compiler/cache.js';
import { compileContext } from '../dist/targets/qnn/compile-context.js';
import { requireToolchain } from '../dist/targets/qnn/toolchain.js';
import { findSoc } from '../dist/targets/socs.js';

const text = (value) => ({ type: 'string', default: value });
const { values } = parseArgs({
  options: {
    checkpoint: text(cacheFolder('models', 'smollm2-135m-instruct', 'SmolLM2-135M-Instruct.Q4_1.gguf')),
    soc: text('SM8550,SM8650,SM8750,SM8850'),
    scheme: text('w4a16,w8a16,w8a8'),
    tokens: text('128'),
    cache: text('512,1024,2048,4096'),
    // Of one SoC the graphs are compiled alone as well: their sizes hardly differ between SoCs.
    alone: text('SM8750'),
    jobs: text('2'),
  },
});
if (!existsSync(values.checkpoint)) throw new Error('run node test/tools/fetch-smollm2.mjs first');
const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const toolchain = requireToolchain('qnn');
const sha256 = createHash('sha256').update(readFileSync(values.checkpoint)).digest('hex');
const table = path('results/matrix.yaml');
const known = existsSync(table) ? parse(readFileSync(table, 'utf8')) : undefined;
const same =
  known?.checkpoint?.sha256 === sha256 && JSON.stringify(known.toolchain) === JSON.stringify(toolchain.versions);
const cells = new Map((same ? known.cells : []).map((cell) => [`${cell.scheme} ${cell.soc}`, cell]));

/** Runs npuc; gives its seconds. */
async function run(args) {
  const started = performance.now();
  const child = spawn(process.execPath, [path('../dist/cli/main.js'), ...args], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const code = await new Promise((done) => child.on('close', done));
  if (code !== 0) throw new Error(`npuc ${args.join(' ')} exited with ${code}`);
  return (performance.now() - started) / 1000;
}

async function measureCell(soc, scheme) {
  const folder = mkdtempSync(join(tmpdir(), 'npuc-matrix-'));
  const out = join(folder, 'build');
  try {
    const shapes = ['--tokens', values.tokens, '--cache', values.cache];
    const command = ['compile', values.checkpoint, '--target', 'qnn', '--soc', soc, '--scheme', scheme, ...shapes];
    const seconds = await run([
      ...command,
      '--kv',
      scheme === 'w8a8' ? '8' : '16',
      '--evaluate',
      'none',
      '--quiet',
      '--out',
      out,
    ]);
    const { targets, files, soc: made } = JSON.parse(readFileSync(join(out, 'manifest.json'), 'utf8'));
    const stages = JSON.parse(readFileSync(join(out, 'timings.json'), 'utf8'));
    const { qnn } = targets;
    const binary = files.find(({ path: file }) => file.endsWith('.bin'));
    const alone = {};
    if (soc === values.alone) {
      for (const graph of qnn.graphs) {
        const model = { name: graph.name, path: join(out, graph.source), externalData: ['weights.data'] };
        const outputFolder = join(folder, graph.name);
        const compiled = await compileContext(toolchain, [model], { soc: findSoc(soc), share: false, outputFolder });
        alone[graph.name] = statSync(compiled.files[0].binary).size;
        rmSync(outputFolder, { recursive: true });
      }
    }
    return {
      scheme,
      soc,
      arch: made.arch,
      graphs: qnn.graphs.length,
      binary: basename(binary.path),
      sha256: binary.sha256,
      weightBytes: qnn.facts.weightBytes,
      sharedBytes: binary.bytes,
      ...(soc === values.alone ? { aloneBytes: alone } : {}),
      seconds: Number(seconds.toFixed(0)),
      peakGigabytes: Number((Math.max(...stages.map((stage) => stage.peakRssBytes)) / 1e9).toFixed(2)),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** 1.10 W + the sum of what every graph alone has beyond the weights: what the shared binary may be. */
function limitOf(cell) {
  const alone = cells.get(`${cell.scheme} ${values.alone}`)?.aloneBytes;
  if (!alone) return undefined;
  return (
    1.1 * cell.weightBytes + Object.values(alone).reduce((sum, bytes) => sum + Math.max(0, bytes - cell.weightBytes), 0)
  );
}

function writeTables() {
  const list = [...cells.values()].sort((a, b) => a.scheme.localeCompare(b.scheme) || a.arch.localeCompare(b.arch));
  const result = {
    checkpoint: { name: basename(values.checkpoint), sha256 },
    toolchain: toolchain.versions,
    shapes: { tokens: values.tokens, cache: values.cache },
    cells: list,
  };
  writeFileSync(table, stringify(result, { lineWidth: 0 }));
  const megabytes = (bytes) => (bytes === undefined ? '' : (bytes / 1e6).toFixed(1));
  const head = [
    'scheme',
    'SoC',
    'arch',
    'graphs',
    'weights MB',
    'binary MB',
    'limit MB',
    'graphs alone MB',
    'seconds',
    'npuc peak GB',
  ];
  const lines = list.map((cell) => [
    cell.scheme,
    cell.soc,
    cell.arch,
    cell.graphs,
    megabytes(cell.weightBytes),
    megabytes(cell.sharedBytes),
    megabytes(limitOf(cell)),
    cell.aloneBytes ? megabytes(Object.values(cell.aloneBytes).reduce((a, b) => a + b)) : '',
    cell.seconds,
    cell.peakGigabytes,
  ]);
  writeFileSync(
    path('results/matrix.md'),
    `# SmolLM2-135M-Instruct on four SoCs

Written by \`npm run test:matrix\`: tokens ${values.tokens} and 1, caches ${values.cache}, all graphs in one binary, no node on the CPU,
names, types, scales and SoC read back from each binary. \`limit\` is 1.10 times the encoded weights plus what every graph alone
(measured on ${values.alone}) has beyond them. Seconds are of the whole compile, ${values.jobs} at a time on two cores;
the peak is npuc's own, without the vendor's compiler in its child process (docs/bundles.md says what that takes).

Checkpoint ${basename(values.checkpoint)}, SHA-256 ${sha256}; ${Object.entries(toolchain.versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(', ')}.

${[head, head.map(() => '---'), ...lines].map((line) => `| ${line.join(' | ')} |`).join('\n')}
`,
  );
}

const waiting = values.scheme
  .split(',')
  .flatMap((scheme) => values.soc.split(',').map((soc) => ({ soc, scheme })))
  .filter(({ soc, scheme }) => !cells.has(`${scheme} ${soc}`))
  .sort((a, b) => Number(b.soc === values.alone) - Number(a.soc === values.alone));
let over = 0;
await Promise.all(
  Array.from({ length: Number(values.jobs) }, async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const cell = await measureCell(next.soc, next.scheme);
      cells.set(`${cell.scheme} ${cell.soc}`, cell);
      writeTables();
      process.stderr.write(
        `${cell.scheme} ${cell.soc}: ${(cell.sharedBytes / 1e6).toFixed(1)} MB, ${cell.seconds} s\n`,
      );
    }
  }),
);
for (const cell of cells.values()) if (cell.sharedBytes > (limitOf(cell) ?? Infinity)) over++;
if (over > 0) throw new Error(`${over} binaries are larger than their limit`);
