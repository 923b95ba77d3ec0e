// What it costs to compile a large checkpoint in parts, and how well that was foretold: time, peak memory and processor time
// of every part, written to bench/results/compile-1b.md and .yaml.
// npm run -s build && node bench/make-checkpoint.mjs /tmp/1b && node bench/compile-1b.mjs /tmp/1b /tmp/1b-build
//   [--tokens 128 --cache 512,1024,2048,4096 --max-memory 12GiB --scheme w4a16 --soc SM8750]
// A folder that is compiled already is only read. Weights are random: nothing is evaluated, and rounding costs no time. Allow an hour.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { stringify } from 'yaml';

const text = (value) => ({ type: 'string', default: value });
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: text('128'),
    cache: text('512,1024,2048,4096'),
    'max-memory': text('12GiB'),
    scheme: text('w4a16'),
    soc: text('SM8750'),
  },
});
const [checkpoint, folder] = positionals;
if (!checkpoint || !folder) throw new Error('node bench/compile-1b.mjs <checkpoint> <folder>');
const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const flags = ['--target', 'qnn', ...Object.entries(values).flatMap(([name, value]) => [`--${name}`, value])];
const common = [...flags, '--rounding', 'nearest', '--evaluate', 'none', '--calibration-windows', '2'];

if (!existsSync(join(folder, 'manifest.json'))) {
  const command = [path('../dist/cli/main.js'), 'compile', checkpoint, ...common, '--out', folder];
  const { status } = spawnSync(process.execPath, command, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (status !== 0) process.exit(status ?? 1);
}

const read = (name) => JSON.parse(readFileSync(join(folder, name), 'utf8'));
const manifest = read('manifest.json');
const stages = read('timings.json');
const { qnn } = manifest.targets;
const parts = stages.flatMap((stage) => stage.parts ?? []);
// What the planner of this version foretells, which may be newer than the run.
const dry = spawnSync(process.execPath, [
  path('../dist/cli/main.js'),
  'compile',
  checkpoint,
  ...common,
  '--dry-run',
  '--json',
]);
const foretold = JSON.parse(dry.stdout).parts;
if (foretold.length !== parts.length) throw new Error('the planner of this version cuts otherwise: compile again');
const percent = (predicted, measured) => Number(((predicted / measured - 1) * 100).toFixed(1));
const round = (value, digits) => Number(value.toFixed(digits));
const binaries = qnn.files.filter((file) => file.endsWith('.bin'));

const rows = parts.map((part, index) => ({
  part: index + 1,
  stages: part.name,
  weights: part.weights,
  graphs: part.graphs,
  binaryMegabytes: round(statSync(join(folder, binaries[index])).size / 1e6, 1),
  seconds: round(part.seconds, 1),
  peakGigabytes: round(part.peakRssBytes / 1e9, 3),
  predictedPeakGigabytes: round(foretold[index].peakBytes / 1e9, 3),
  peakError: percent(foretold[index].peakBytes, part.peakRssBytes),
  cpuSeconds: round(part.cpuSeconds, 1),
  predictedCpuSeconds: round(foretold[index].cpuSeconds, 1),
  cpuError: percent(foretold[index].cpuSeconds, part.cpuSeconds),
}));
const result = {
  checkpoint: { weights: rows.reduce((sum, row) => sum + row.weights, 0), digest: manifest.source.digest },
  command: `npuc compile <checkpoint> ${common.join(' ')}`,
  soc: manifest.soc,
  toolchain: manifest.toolchain,
  machine: { cpu: cpus()[0].model.trim(), cores: cpus().length, memoryGigabytes: Math.floor(totalmem() / 1e9) },
  graphs: qnn.graphs.map(({ name }) => name),
  parts: rows,
  // The tool's own process, by stage; the vendor's compiler runs in children.
  stages: stages.map((stage) => ({
    stage: stage.name,
    seconds: round(stage.seconds, 1),
    peakGigabytes: round(stage.peakRssBytes / 1e9, 3),
  })),
};

const table = (head, lines) =>
  [head, head.map(() => '---'), ...lines].map((line) => `| ${line.join(' | ')} |`).join('\n');
const signed = (value) => `${value > 0 ? '+' : ''}${value} %`;
const markdown = `# Compiling 1.2 billion weights in parts

\`${result.command}\`

Checkpoint of random weights (bench/make-checkpoint.mjs), ${result.checkpoint.weights.toLocaleString('en-US')} weights in graphs, digest
\`${result.checkpoint.digest}\`. ${qnn.graphs.length} graphs for ${manifest.soc.name}: ${result.graphs.join(', ')}. QAIRT
${manifest.toolchain.qairt}, ONNX Runtime ${manifest.toolchain.onnxruntime}; ${result.machine.cpu}, ${result.machine.cores} cores, shared with other work:
seconds are upper bounds, processor time and memory hardly suffer from that.

${table(
  [
    'part',
    'stages',
    'M weights',
    'graphs',
    'binary MB',
    's',
    'peak GB',
    'predicted',
    'error',
    'CPU s',
    'predicted',
    'error',
  ],
  rows.map((row) => [
    row.part,
    row.stages,
    (row.weights / 1e6).toFixed(1),
    row.graphs,
    row.binaryMegabytes,
    row.seconds,
    row.peakGigabytes,
    row.predictedPeakGigabytes,
    signed(row.peakError),
    row.cpuSeconds,
    row.predictedCpuSeconds,
    signed(row.cpuError),
  ]),
)}

The tool's own process, by stage:

${table(
  ['stage', 's', 'peak GB so far'],
  result.stages.map(({ stage, seconds, peakGigabytes }) => [stage, seconds, peakGigabytes]),
)}

A calibration of less than a second means that the statistics of checkpoint and text were known already.
`;
mkdirSync(path('results'), { recursive: true });
writeFileSync(path('results/compile-1b.yaml'), stringify(result));
writeFileSync(path('results/compile-1b.md'), markdown);
process.stdout.write(markdown);
