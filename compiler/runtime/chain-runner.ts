import { NpucError } from '../errors.ts';
import type { TensorData } from '../ir/tensor.ts';
import type { PortInfo, Runner, Tensors } from './runner.ts';

/**
 * Runs the parts of a graph that was cut, one after the other, as if they were one: an input goes to every part that has
 * it, an output of one part that a later part takes under the same name is handed on and stays inside. Parts whose outputs
 * nobody asked for do not run.
 * `run` throws RT011 for an output that there is not, and what the parts' own runners throw.
 */
export class ChainRunner implements Runner {
  readonly engine: string;
  readonly inputs: readonly PortInfo[];
  readonly outputs: readonly PortInfo[];
  readonly #parts: readonly Runner[];
  /** For every part, names of its outputs that later parts take. */
  readonly #handed: readonly ReadonlySet<string>[];

  /** @param parts in the order that they run in, at least one */
  constructor(parts: readonly Runner[]) {
    this.#parts = parts;
    this.engine = parts[0]!.engine;
    this.#handed = parts.map((part, index) => {
      const taken = new Set(parts.slice(index + 1).flatMap(({ inputs }) => inputs.map(({ name }) => name)));
      return new Set(part.outputs.flatMap(({ name }) => (taken.has(name) ? [name] : [])));
    });
    const made = new Set(this.#handed.flatMap((names) => [...names]));
    const inputs = parts.flatMap((part) => part.inputs).filter(({ name }) => !made.has(name));
    this.inputs = [...new Map(inputs.map((port) => [port.name, port])).values()];
    this.outputs = parts.flatMap((part) => part.outputs).filter(({ name }) => !made.has(name));
  }

  async run(feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>> {
    const wanted = new Set(outputs ?? this.outputs.map(({ name }) => name));
    for (const name of wanted) {
      if (!this.outputs.some((port) => port.name === name))
        throw new NpucError('RT011', { message: `there is no output ${name}` });
    }
    const plan = this.#planRun(wanted);
    const held = new Map(Object.entries(feeds));
    const results: Record<string, TensorData> = {};
    for (const [index, part] of this.#parts.entries()) {
      const names = plan[index]!;
      if (names.length === 0) continue;
      const given = part.inputs.flatMap(({ name }): [string, TensorData][] => {
        const tensor = held.get(name);
        return tensor ? [[name, tensor]] : [];
      });
      const made = await part.run(Object.fromEntries(given), names);
      for (const [name, tensor] of Object.entries(made)) {
        if (this.#handed[index]!.has(name)) held.set(name, tensor);
        if (wanted.has(name)) results[name] = tensor;
      }
    }
    return results;
  }

  /** Names to fetch from each part, last part first: what was asked for, and what later parts that run take. */
  #planRun(wanted: ReadonlySet<string>): string[][] {
    const needed = new Set(wanted);
    const plan: string[][] = [];
    for (const part of [...this.#parts].reverse()) {
      const names = part.outputs.flatMap(({ name }) => (needed.has(name) ? [name] : []));
      if (names.length > 0) for (const { name } of part.inputs) needed.add(name);
      plan.unshift(names);
    }
    return plan;
  }

  async close(): Promise<void> {
    for (const part of this.#parts) await part.close();
  }
}
