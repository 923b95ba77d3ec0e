import { describe, expect, it } from 'vitest';
import type { Node } from '../../compiler/ir/graph.ts';
import { parseModule, printModule } from '../../compiler/ir/text.ts';
import { any, constant, either, type Match, matchPattern, number, op, type Pattern } from '../../compiler/match.ts';
import { runPasses } from '../../compiler/pass.ts';
import { rewritePass } from '../../compiler/rewrite.ts';

/** Matches a pattern at the node that makes %y. */
function match(lines: string, pattern: Pattern): Match | undefined {
  const module = parseModule(
    `npuir 1\nopset 24\ngraph @main\n  in %x : f32[2]\n  in %z : f32[2]\n${lines}\n  out %y\n`,
  );
  return matchPattern(pattern, module.graph().find('y')!.producer as Node);
}

const x = any('x');

describe('patterns', () => {
  it('match commutative inputs in both orders, others as written', () => {
    const product = op('Mul', [op('Relu', [x]), any('other')]);
    expect(match('  %r = Relu(%x)\n  %y = Mul(%r, %z)', product)?.value('other').name).toBe('z');
    expect(match('  %r = Relu(%x)\n  %y = Mul(%z, %r)', product)?.value('other').name).toBe('z');
    expect(match('  %r = Relu(%x)\n  %y = Sub(%z, %r)', op('Sub', [op('Relu', [x]), any('other')]))).toBeUndefined();
  });

  it('take the same name for the same value, trying orders until it is', () => {
    const swish = op('Mul', [x, op('Sigmoid', [x])]);
    expect(match('  %s = Sigmoid(%x)\n  %y = Mul(%s, %x)', swish)?.value('x').name).toBe('x');
    expect(match('  %s = Sigmoid(%z)\n  %y = Mul(%s, %x)', swish)).toBeUndefined();
  });

  it('go back inside alternatives when the rest does not fit', () => {
    // The first way to read the sum binds x to the Neg, which the outer product then contradicts.
    const sum = op('Add', [any('a'), any('b')]);
    const found = match('  %n = Neg(%x)\n  %s = Add(%n, %x)\n  %y = Mul(%s, %n)', op('Mul', [sum, any('b')]));
    expect([found?.value('a').name, found?.value('b').name]).toEqual(['x', 'n']);
  });

  it('read numbers as closely as their type holds them', () => {
    const half = op('Mul', [x, number(Math.SQRT1_2)]);
    expect(match('  %c : f32[] = const 0.70710677\n  %y = Mul(%x, %c)', half)).toBeDefined();
    expect(match('  %c : f16[] = const 0.7071\n  %y = Mul(%x, %c)', half)).toBeDefined();
    expect(match('  %c : f32[] = const 0.7071\n  %y = Mul(%x, %c)', half)).toBeUndefined();
    expect(match('  %c : f32[2] = const [0.70710677, 0.70710677]\n  %y = Mul(%x, %c)', half)).toBeUndefined();
    expect(match('  %c : f32[] q(u8, scale 0.1) = const 0.70710677\n  %y = Mul(%x, %c)', half)).toBeUndefined();
  });

  it('ask for exactly the inputs they name', () => {
    const lines = '  %c : f32[] = const 0.5\n  %y = Clip(%x, _, %c)';
    expect(match(lines, op('Clip', [x]))).toBeUndefined();
    expect(match(lines, op('Clip', [x, undefined, constant('c')]))).toBeDefined();
    expect(match('  %y = Clip(%x, _, _)', op('Clip', [x]))).toBeDefined();
  });

  it('tell the outputs of a node apart, and know a node by its name', () => {
    const part = (output: number): Pattern => op('Split', [x], { as: 'split', output });
    const swapped = op('Concat', [part(1), part(0)]);
    const lines = '  %a, %b = Split(%x) {num_outputs 2}\n';
    expect(match(`${lines}  %y = Concat(%b, %a) {axis 0}`, swapped)?.nodes.map((node) => node.op)).toEqual([
      'Split',
      'Concat',
    ]);
    expect(match(`${lines}  %y = Concat(%a, %b) {axis 0}`, swapped)).toBeUndefined();
    const twice = `${lines}  %c, %d = Split(%x) {num_outputs 2}\n  %y = Concat(%b, %c) {axis 0}`;
    expect(match(twice, swapped)).toBeUndefined();
  });

  it('may be alternatives at the root', () => {
    const pattern = either(op('Relu', [x]), op('Abs', [x]));
    expect(match('  %y = Abs(%z)', pattern)?.value('x').name).toBe('z');
  });
});

describe('rewritePass', () => {
  const fuse = rewritePass({
    name: 'fuse-abs-neg',
    about: 'a pass of this test',
    rules: [{ pattern: op('Abs', [op('Neg', [x])]), rewrite: (found, build) => build.emit('Abs', [found.value('x')]) }],
  });
  const run = (lines: string, head = ''): { text: string; remarks: string[] } => {
    const module = parseModule(`npuir 1\nopset 24\n${head}graph @main\n  in %x : f32[2]\n${lines}`);
    const { remarks } = runPasses(module, [fuse], { verifyValues: true });
    return { text: printModule(module), remarks: remarks.map(({ where, text }) => `${where}: ${text}`) };
  };

  it('keeps the name, encoding and ports of the result and gathers the names of the user', () => {
    const { text } = run(
      '  %n = Neg(%x)  ; from first\n  %y q(u8, scale 0.5) = Abs(%n) as "user"  ; from second\n  out %y quantized\n',
    );
    expect(text).toContain(
      '  %y : f32[2] q(u8, scale 0.5) = Abs(%x) as "user"  ; from first second\n  out %y quantized',
    );
  });

  it('goes on until nothing matches', () => {
    const lines = '  %a = Neg(%x)\n  %b = Abs(%a)\n  %c = Neg(%b)\n  %y = Abs(%c)\n  out %y\n';
    expect(run(lines).text).toContain('  %b : f32[2] = Abs(%x)\n  %y : f32[2] = Abs(%b)');
  });

  it.each([
    [
      'read elsewhere',
      '  %n = Neg(%x)\n  %y = Abs(%n)\n  %z = Relu(%n)\n  out %y\n  out %z\n',
      '',
      '%n is also read by z/Relu',
    ],
    ['an output', '  %n = Neg(%x)\n  %y = Abs(%n)\n  out %y\n  out %n\n', '', '%n is an output of the graph'],
    [
      'encoded',
      '  %n q(u8, scale 0.5) = Neg(%x)\n  %y = Abs(%n)\n  out %y\n',
      '',
      '%n has an encoding that would be lost',
    ],
    ['tied', '  %n = Neg(%x)\n  %y = Abs(%n)\n  out %y\n', 'tie %n %x\n', '%n is in a tie group'],
  ])('refuses when an inner value is %s', (_, lines, head, reason) => {
    const { text, remarks } = run(lines, head);
    expect(remarks).toEqual([`y/Abs: ${reason}`]);
    expect(text).toContain('= Neg(%x)');
  });
});
