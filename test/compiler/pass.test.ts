import { describe, expect, it } from 'vitest';
import { NpucError } from '../../compiler/errors.ts';
import { type Graph, intAttribute, type Module, tensorType } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { type Pass, type RunPassesOptions, runPasses } from '../../compiler/pass.ts';

const TEXT = `npuir 1
opset 21
graph @main
  in %x : f32[n,2]
  %w : f32[2] = const [1.0, 2.0]
  %h = Mul(%x, %w)
  %y = If(%c) {then_branch graph @yes
      %a = Relu(%h)
      out %a
    end, else_branch graph @no
      %b = Neg(%h)
      out %b
    end}
  out %y
`.replace('  %w', '  in %c : bool[]\n  %w');

function pass(run: Pass['run'], rest: Partial<Pass> = {}): Pass {
  return { name: 'culprit', about: 'a pass of this test', run, ...rest };
}

function errorOf(run: () => unknown): NpucError {
  try {
    run();
  } catch (error) {
    if (error instanceof NpucError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

const failure = (passes: readonly Pass[], options?: RunPassesOptions): NpucError =>
  errorOf(() => runPasses(parseModule(TEXT), passes, options));

/** Multiplies by a weight that is a little larger. */
const growWeight = (graph: Graph): boolean => {
  const weight = graph.find('w');
  if (!weight) return false;
  weight.data = Tensor.of('f32', [2], [1, 2.01]);
  return true;
};

describe('runPasses', () => {
  it('runs passes in order, subgraphs first, and tells what changed', () => {
    const seen: string[] = [];
    const look = pass((graph) => seen.push(graph.name) === 0);
    const top = pass((graph) => seen.push(`top ${graph.name}`) > 0, { name: 'top', scope: 'top graphs' });
    const heard: string[] = [];
    const report = runPasses(parseModule(TEXT), [look, top], {
      onPass: (name, changed) => heard.push(`${name} ${changed}`),
    });
    expect(seen).toEqual(['yes', 'no', 'main', 'top main']);
    expect(report.changed).toEqual(['top']);
    expect(heard).toEqual(['culprit false', 'top true']);
  });

  it('keeps a remark once however often a pass says it', () => {
    const talk = pass(
      (graph, context) => {
        context.remark(graph.nodes[0]!, 'said');
        return false;
      },
      { scope: 'top graphs' },
    );
    const { remarks } = runPasses(parseModule(TEXT), [talk, talk]);
    expect(remarks).toEqual([{ pass: 'culprit', where: 'h/Mul', text: 'said' }]);
  });

  it('gives shapes to what a pass made', () => {
    const module = parseModule(TEXT);
    const negate = pass(
      (graph) => {
        const fresh = graph.emit('Neg', [graph.find('x')]);
        graph.outputs.push(fresh);
        return true;
      },
      { scope: 'top graphs', changesInterface: true },
    );
    runPasses(module, [negate]);
    expect(module.graph().outputs[1]!.type).toEqual(tensorType('f32', ['n', 2]));
  });

  it('names the pass that breaks the rules of the IR', () => {
    const error = failure(
      [
        pass(
          (graph) => {
            graph.nodes.reverse();
            return true;
          },
          { scope: 'top graphs' },
        ),
      ],
      { inferShapes: false },
    );
    expect(error.code).toBe('PS101');
    expect(error.exitCode).toBe(70);
    expect(error.message).toMatch(/after the pass culprit .*\n.*order: /);
  });

  it('checks what a pass requires and ensures', () => {
    const requires = failure([pass(() => false, { requires: ['frozen'] })]);
    expect(requires.code).toBe('PS102');
    expect(requires.message).toBe(
      'the pass culprit requires a module that is "frozen", but the shape of x is not fixed',
    );
    const constant = pass(
      (graph) => {
        graph.emit('Constant', [], { attributes: { value_int: intAttribute(1) }, before: graph.nodes[0]! });
        return true;
      },
      { scope: 'top graphs', ensures: ['no Constant nodes'] },
    );
    expect(failure([constant]).message).toContain(
      'ensures a module that is "no Constant nodes", but there is constant',
    );
  });

  it('finds a pass that changes values, and says which output by how much', () => {
    const error = failure([pass(growWeight)], { verifyValues: true });
    expect(error.code).toBe('PS103');
    expect(error.message).toMatch(/the pass culprit changed @main: y was .* and is .* at element/);
    expect(runPasses(parseModule(TEXT), [pass(growWeight)], { verifyValues: { tolerance: 0.1 } }).changed).toEqual([
      'culprit',
    ]);
  });

  it('finds a pass that changes something and denies it', () => {
    const sly = pass((graph) => growWeight(graph) && false);
    expect(failure([sly], { verifyValues: true }).message).toContain('changed the module and said that it did not');
  });

  it('finds a pass that renames an output', () => {
    const rename = pass(
      (graph) => {
        graph.renameValue(graph.find('y')!, 'z');
        return true;
      },
      { scope: 'top graphs' },
    );
    expect(failure([rename], { verifyValues: true }).message).toContain('its inputs or outputs have other names');
  });

  it('says when values cannot be compared, instead of skipping them silently', () => {
    const module = parseModule(
      TEXT.replace('Relu(%h)', 'com.example::Unknown(%h)').replace('opset 21', 'opset 21\nopset com.example 1'),
    );
    const touch = pass((graph: Graph) => {
      graph.doc = 'touched';
      return true;
    });
    const options = { verifyValues: { feeds: { c: { dtype: 'bool', shape: [], data: Uint8Array.of(1) } as const } } };
    expect(runPasses(module, [touch], options).remarks[0]!.text).toMatch(/values are not compared: .*Unknown/);
  });

  it('gives up on passes that undo each other', () => {
    const flip = (from: string, to: string): Pass =>
      pass(
        (graph) => {
          const value = graph.find(from);
          if (value) graph.renameValue(value, to);
          return value !== undefined;
        },
        { name: `${from}-to-${to}`, scope: 'top graphs' },
      );
    const error = failure([flip('h', 'g'), flip('g', 'h')], { untilStable: true });
    expect(error.message).toBe('the passes undo each other: h-to-g, g-to-h');
  });

  it('leaves a module that no pass changes as it was', () => {
    const module: Module = parseModule(TEXT);
    runPasses(module, []);
    const before = printModule(module);
    runPasses(module, [pass(() => false)], { verifyValues: true });
    expect(printModule(module)).toBe(before);
  });
});
