import { readFileSync } from 'node:fs';
import { parse } from 'yaml';
import { z } from 'zod';
import type { Module } from '../compiler/ir/graph.ts';
import { parseModule } from '../compiler/ir/text.ts';

/** One op in one form, as a small graph: what is measured on a target's runtime. */
export interface OpForm {
  readonly family: string;
  readonly op: string;
  /** What sets this form apart from others of the op; may be empty. */
  readonly form: string;
  readonly opset: number;
  /** The graph in the text form of the IR, whole. */
  readonly text: string;
}

const FILE = z.record(
  z.string(),
  z.array(
    z.strictObject({
      op: z.string(),
      form: z.coerce.string().default(''),
      opset: z.number().int().default(21),
      graph: z.string(),
    }),
  ),
);

/** Reads `fixtures/op-forms.yaml`: families of forms. @throws a schema error that names the entry */
export function readOpForms(path: string): OpForm[] {
  const families = FILE.parse(parse(readFileSync(path, 'utf8')));
  return Object.entries(families).flatMap(([family, entries]) =>
    entries.map(({ op, form, opset, graph }) => ({ family, op, form, opset, text: completeText(graph, opset) })),
  );
}

/** The graph of a form. */
export function parseForm(form: OpForm): Module {
  return parseModule(form.text);
}

function completeText(graph: string, opset: number): string {
  const lines = graph.trim().split('\n');
  const starts = (word: string): boolean => lines.some((line) => line.startsWith(`${word} `));
  const body = [
    ...(starts('in') ? [] : ['in %x : f32[1,8,12,12]']),
    // Inputs come first in the text form, whatever the order they are written in.
    ...lines.filter((line) => line.startsWith('in ')),
    ...lines.filter((line) => !line.startsWith('in ')),
    ...(starts('out') ? [] : ['out %y']),
  ];
  return `npuir 1\nopset ${opset}\n\ngraph @form\n${body.map((line) => `  ${line}\n`).join('')}`;
}
