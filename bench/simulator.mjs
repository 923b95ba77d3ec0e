// What the HTP simulator costs on an output folder with a qnn target: compiling its twins, one prefill chunk, decoded
// tokens, memory and sizes; and how far its logits are from ONNX Runtime on the same QDQ models.
// npm run -s build && node bench/simulator.mjs <folder> [--text file]
// The twins are compiled anew, in a cache folder of their own. Seconds are of this machine.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadTokenizer } from '../dist/compiler/runtime/tokenizer.js';
import { compareRows } from '../dist/evaluation/compare-chunk.js';
import { readManifest } from '../dist/targets/manifest.js';
import { compileContext } from '../dist/targets/qnn/compile-context.js';
import { qnnTarget } from '../dist/targets/qnn/qnn-target.js';
import { requireToolchain } from '../dist/targets/qnn/toolchain.js';
import { findSoc } from '../dist/targets/socs.js';

const DECODED = 4;

const [folder, flag, textFile] = process.argv.slice(2);
if (!folder) throw new Error('node bench/simulator.mjs <folder> [--text file]');
const toolchain = requireToolchain('qnn');
const manifest = readManifest(folder);
const target = manifest.targets.qnn;
const tokenizer = loadTokenizer(
  JSON.parse(readFileSync(join(folder, 'tokenizer.json'), 'utf8')),
  {},
  { where: folder },
);
const text = readFileSync(
  flag === '--text' ? textFile : new URL('../fixtures/texts/evaluation.txt', import.meta.url),
  'utf8',
);
const chunk = Math.max(...target.graphs.map((graph) => graph.tokens));
const ids = tokenizer.encode(text.slice(0, 8 * (chunk + DECODED)), { addSpecialTokens: false });

const cache = mkdtempSync(join(tmpdir(), 'npuc-bench-'));
process.once('exit', () => rmSync(cache, { recursive: true, force: true }));
process.env.NPUC_CACHE = cache;

const time = async (action) => {
  const started = performance.now();
  const value = await action();
  return { value, seconds: (performance.now() - started) / 1000 };
};
const row = (what, value) => console.log(`${what.padEnd(44)} ${value}`);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

const bytesIn = (path) => statSync(path).size;
const shipped = target.files.filter((file) => !file.includes('/qdq/'));
row(
  `artifact (${target.facts.shared ? 'shared' : 'alone'})`,
  megabytes(shipped.reduce((sum, file) => sum + bytesIn(join(folder, file)), 0)),
);

const soc = findSoc(manifest.soc.name);
const sources = target.graphs.map((graph) => ({
  name: graph.name,
  path: join(folder, graph.source),
  externalData: ['weights.data'],
}));
for (const [name, models] of [...sources.map((source) => [source.name, [source]]), ['all, shared', sources]]) {
  const outputFolder = mkdtempSync(join(cache, 'compile-'));
  const compiled = await compileContext(toolchain, models, { soc, share: models.length > 1, outputFolder });
  const bytes = readdirSync(outputFolder).reduce((sum, file) => sum + bytesIn(join(outputFolder, file)), 0);
  row(
    `compile ${name}`,
    `${compiled.seconds.toFixed(1)} s, peak ${megabytes(compiled.peakRssBytes)}, ${megabytes(bytes)}`,
  );
  rmSync(outputFolder, { recursive: true });
}
const first = await time(() => qnnTarget.open(folder, target, { toolchain }));
row('open, twins compiled (two at a time)', `${first.seconds.toFixed(1)} s`);
await first.value.close();
const { value: session, seconds: opening } = await time(() => qnnTarget.open(folder, target, { toolchain }));
row('open, twins known', `${opening.toFixed(1)} s`);

const window = ids.slice(0, chunk);
const following = ids.slice(chunk, chunk + DECODED);
const run = await time(() => session.feed(window, 'all'));
row(`a chunk of ${window.length} tokens`, `${run.seconds.toFixed(1)} s`);
const got = run.value;
const decode = await time(async () => {
  for (const id of following) got.push(...(await session.feed([id])));
});
row('a decoded token', `${(decode.seconds / following.length).toFixed(1)} s`);
await session.close();

const reference = await qnnTarget.openReference(folder, target);
const expected = await reference.feed(window, 'all');
for (const id of following) expected.push(...(await reference.feed([id])));
await reference.close();
const whole = compareRows(expected, got);
const prefill = compareRows(expected.slice(0, window.length), got.slice(0, window.length));
const decoded = compareRows(expected.slice(window.length), got.slice(window.length));
row(
  'logits against ONNX Runtime, chunk',
  `${prefill.sqnr.toFixed(1)} dB, same token ${(100 * prefill.topAgreement).toFixed(1)} %`,
);
row(
  'logits against ONNX Runtime, decoded',
  `${decoded.sqnr.toFixed(1)} dB, same token ${(100 * decoded.topAgreement).toFixed(1)} %`,
);
row('both', `${whole.sqnr.toFixed(1)} dB`);
