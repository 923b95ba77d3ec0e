// Measures every form of fixtures/op-forms.yaml on the HTP simulator and writes SUPPORT.md: about five minutes.
// npm run support [-- --soc SM8650] [-- --only Resize] [-- --print]
// --only measures the ops of that name and prints; --print writes nothing.
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { OpMeter } from '../dist/evaluation/measure-op.js';
import { readOpForms } from '../dist/evaluation/op-forms.js';
import { measureForm, renderSupport } from '../dist/evaluation/support-table.js';
import { requireToolchain } from '../dist/targets/qnn/toolchain.js';
import { findSoc } from '../dist/targets/socs.js';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const { values } = parseArgs({
  options: { soc: { type: 'string', default: 'SM8650' }, only: { type: 'string' }, print: { type: 'boolean' } },
});
const toolchain = requireToolchain('qnn');
const soc = findSoc(values.soc);
const forms = readOpForms(join(root, 'fixtures', 'op-forms.yaml')).filter(
  ({ op }) => values.only === undefined || op === values.only,
);
const meter = new OpMeter(toolchain, soc);
const rows = [];
for (const form of forms) {
  rows.push(await measureForm(form, meter, soc));
  process.stderr.write(`\r${rows.length}/${forms.length} ${form.op.padEnd(30)}`);
}
await meter.close();
process.stderr.write('\n');
const { onnxruntime, 'onnxruntime-qnn': plugin, qairt } = toolchain.versions;
const text = renderSupport(rows, soc, { QAIRT: qairt, 'onnxruntime-qnn': plugin, onnxruntime });
if (values.print || values.only !== undefined) process.stdout.write(text);
else writeFileSync(join(root, 'SUPPORT.md'), text);
