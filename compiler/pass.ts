import { NpucError } from './errors.ts';
import { cloneModule } from './ir/clone.ts';
import type { Graph, Module, Node, Value } from './ir/graph.ts';
import { printModule } from './ir/text.ts';
import { verify } from './ir/verify.ts';
import { inferShapes } from './ops/infer-shapes.ts';
import { compareModules, type ValueCheck } from './pass-values.ts';

/** What a pass has to say about a place: mostly why it did not fire. */
export interface Remark {
  readonly pass: string;
  /** Name of a node or value. */
  readonly where: string;
  readonly text: string;
}

/** What a pass may ask and tell while it runs. */
export interface PassContext {
  readonly module: Module;
  /** Opset version of a domain ('' by default), 0 when the module does not name it. */
  opset(domain?: string): number;
  readonly remarks: readonly Remark[];
  /** Keeps a remark once, however often a pass comes by. */
  remark(at: Node | Value | string, text: string): void;
}

/** Facts about a graph that passes need or promise; the runner checks them. */
export type Property = 'frozen' | 'typed' | 'no Constant nodes' | 'no local functions';

/** A rewrite of graphs, in place. */
export interface Pass {
  readonly name: string;
  /** One line: what it does. */
  readonly about: string;
  /** What must hold before. */
  readonly requires?: readonly Property[];
  /** What holds afterwards. */
  readonly ensures?: readonly Property[];
  /** Whether it runs on subgraphs too (default), innermost first, or on the module's graphs only. */
  readonly scope?: 'every graph' | 'top graphs';
  /** Whether it may change inputs and outputs, so that values before and after cannot be compared. */
  readonly changesInterface?: boolean;
  /** @returns whether anything changed */
  readonly run: (graph: Graph, context: PassContext) => boolean;
}

export interface RunPassesOptions {
  /** Infers shapes before the first pass and after every one that changed something (default true). */
  readonly inferShapes?: boolean;
  /** Checks the IR's rules after every pass that changed something (default true). */
  readonly verify?: boolean;
  /** Evaluates every graph before and after each pass on seeded random inputs with the reference engine. */
  readonly verifyValues?: boolean | ValueCheck;
  /** Runs the whole list again until no pass changes anything. */
  readonly untilStable?: boolean;
  /** Hears about every pass as it ends. */
  readonly onPass?: (name: string, changed: boolean, milliseconds: number) => void;
}

export interface PassReport {
  readonly remarks: readonly Remark[];
  /** Names of the passes that changed something, in order, once for every time they did. */
  readonly changed: readonly string[];
}

/** Finds what contradicts a property; undefined when it holds. */
const PROPERTIES: Readonly<Record<Property, (graph: Graph, module: Module) => string | undefined>> = {
  frozen: (graph) => {
    for (const { name, type } of graph.values)
      if (type?.kind === 'tensor' && !type.shape?.every((dim) => typeof dim === 'number'))
        return `the shape of ${name} is not fixed`;
    return undefined;
  },
  typed: (graph) => {
    for (const { name, type } of graph.values) if (type === undefined) return `the type of ${name} is not known`;
    return undefined;
  },
  'no Constant nodes': (graph) => {
    const node = graph.nodes.find(({ op, domain }) => op === 'Constant' && domain === '');
    return node && `there is ${node.name || 'an unnamed Constant'}`;
  },
  'no local functions': (graph, module) => {
    const known = new Set(module.functions.map(({ domain, name }) => `${domain}::${name}`));
    const node = graph.nodes.find(({ op, domain }) => known.has(`${domain}::${op}`));
    return node && `${node.name || 'an unnamed node'} calls ${node.domain}::${node.op}`;
  },
};

/**
 * Runs passes in order over every graph of a module, and keeps them honest.
 * @throws PS101 when a pass leaves a module that breaks the rules of the IR
 * @throws PS102 when a property that a pass requires or promises does not hold, when it changed something and denied it, or
 *   when passes undo each other (`untilStable`)
 * @throws PS103 when a pass changed what a graph computes (`verifyValues`)
 */
export function runPasses(module: Module, passes: readonly Pass[], options: RunPassesOptions = {}): PassReport {
  const run = new PassRun(module, options);
  if (options.inferShapes !== false) inferShapes(module);
  do {
    const before = run.changed.length;
    for (const pass of passes) run.apply(pass);
    if (run.changed.length === before) return run;
    if (run.changed.length > MOST_ROUNDS * passes.length)
      throw new NpucError('PS102', {
        message: `the passes undo each other: ${[...new Set(run.changed.slice(before))].join(', ')}`,
        exitCode: 70,
      });
  } while (options.untilStable);
  return run;
}

/** How often `untilStable` runs a list before it gives up: real models settle after two or three rounds. */
const MOST_ROUNDS = 20;

class PassRun implements PassReport {
  readonly remarks: Remark[] = [];
  readonly changed: string[] = [];
  readonly #seen = new Set<string>();
  readonly #module: Module;
  readonly #options: RunPassesOptions;

  constructor(module: Module, options: RunPassesOptions) {
    this.#module = module;
    this.#options = options;
  }

  apply(pass: Pass): void {
    const module = this.#module;
    const { verifyValues, onPass } = this.#options;
    this.#demand(pass, pass.requires ?? [], 'requires');
    const before = verifyValues ? cloneModule(module) : undefined;
    const start = performance.now();
    let changed = false;
    for (const graph of module.graphs) if (this.#applyTo(graph, pass)) changed = true;
    if (changed && this.#options.inferShapes !== false) inferShapes(module);
    onPass?.(pass.name, changed, performance.now() - start);
    if (changed) this.changed.push(pass.name);
    if (changed && this.#options.verify !== false) this.#verify(pass);
    this.#demand(pass, pass.ensures ?? [], 'ensures');
    if (before && verifyValues) this.#compare(pass, before, changed, verifyValues === true ? {} : verifyValues);
  }

  #applyTo(graph: Graph, pass: Pass): boolean {
    let changed = false;
    if (pass.scope !== 'top graphs')
      for (const node of [...graph.nodes])
        for (const inner of node.subgraphs) if (this.#applyTo(inner, pass)) changed = true;
    return pass.run(graph, this.#context(pass)) || changed;
  }

  #context(pass: Pass): PassContext {
    const module = this.#module;
    return {
      module,
      remarks: this.remarks,
      opset: (domain = '') => module.opsets.get(domain) ?? 0,
      remark: (at, text) => this.#remark(pass, typeof at === 'string' ? at : at.name, text),
    };
  }

  #remark(pass: Pass, where: string, text: string): void {
    const key = JSON.stringify([pass.name, where, text]);
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.remarks.push({ pass: pass.name, where, text });
  }

  #verify(pass: Pass): void {
    try {
      verify(this.#module);
    } catch (cause) {
      throw new NpucError('PS101', {
        message: `after the pass ${pass.name} ${cause instanceof Error ? cause.message : cause}`,
        where: cause instanceof NpucError && cause.where ? cause.where : pass.name,
        exitCode: 70,
        cause,
      });
    }
  }

  #demand(pass: Pass, properties: readonly Property[], verb: 'requires' | 'ensures'): void {
    for (const property of properties)
      for (const graph of this.#module.graphs) {
        const contradiction = PROPERTIES[property](graph, this.#module);
        if (contradiction === undefined) continue;
        throw new NpucError('PS102', {
          message: `the pass ${pass.name} ${verb} a module that is "${property}", but ${contradiction}`,
          where: `@${graph.name}`,
          exitCode: 70,
        });
      }
  }

  #compare(pass: Pass, before: Module, changed: boolean, check: ValueCheck): void {
    if (!changed) {
      if (printModule(before) === printModule(this.#module)) return;
      throw new NpucError('PS102', {
        message: `the pass ${pass.name} changed the module and said that it did not`,
        where: pass.name,
        exitCode: 70,
      });
    }
    if (pass.changesInterface) return;
    for (const { where, text } of compareModules(pass.name, before, this.#module, check))
      this.#remark(pass, where, text);
  }
}
