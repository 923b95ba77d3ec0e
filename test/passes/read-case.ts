import { readFileSync } from 'node:fs';

/** A pass test as text: what goes in, what must come out, and what the pass must have said. */
export interface PassCase {
  readonly about: string;
  readonly input: string;
  /** JSON for the pass and for the evaluation, `{}` when absent. */
  readonly options: Readonly<Record<string, unknown>>;
  /** The printed module, or `unchanged`; undefined when the case is new. */
  readonly output: string | undefined;
  readonly remarks: readonly string[];
}

/**
 * Reads `fixtures/passes/<pass>/<case>.ir`: comment lines that say why the case is there, then the sections `--- in`,
 * `--- options` (JSON), `--- out` and `--- remarks` (one a line, `where: text`).
 */
export function readCase(path: string): PassCase {
  const sections = new Map<string, string>();
  const [head, ...rest] = readFileSync(path, 'utf8').split(/^--- /m);
  for (const part of rest) {
    const end = part.indexOf('\n');
    sections.set(part.slice(0, end).trim(), part.slice(end + 1).trim());
  }
  const unknown = [...sections.keys()].filter((name) => !['in', 'options', 'out', 'remarks'].includes(name));
  if (unknown.length > 0 || !sections.has('in')) throw new Error(`${path}: sections ${[...sections.keys()]}`);
  return {
    about: head!.replace(/^\/\/ ?/gm, '').trim(),
    input: sections.get('in')!,
    options: JSON.parse(sections.get('options') ?? '{}') as Record<string, unknown>,
    output: sections.get('out'),
    remarks: (sections.get('remarks') ?? '').split('\n').filter((line) => line !== ''),
  };
}

/** A case as text, for writing new ones (`UPDATE_CASES=1`). */
export function printCase(entry: PassCase): string {
  const about = entry.about.split('\n').map((line) => `// ${line}`.trimEnd());
  const parts = [`${about.join('\n')}\n--- in\n${entry.input}\n`];
  if (Object.keys(entry.options).length > 0) parts.push(`--- options\n${JSON.stringify(entry.options)}\n`);
  parts.push(`--- out\n${entry.output}\n`);
  if (entry.remarks.length > 0) parts.push(`--- remarks\n${entry.remarks.join('\n')}\n`);
  return parts.join('');
}
