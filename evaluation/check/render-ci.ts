import { createHash } from 'node:crypto';
import { type CheckReport, listFailures, placeOf } from './check-report.ts';
import { formatFigure } from './render-text.ts';

/** Kinds of what a check says, as rules of SARIF. */
const RULES = [
  { id: 'metric-regression', text: 'A metric over held-out text is worse than noise explains.' },
  { id: 'value-regression', text: 'A value inside the model has lost more dB than noise explains.' },
  { id: 'stage-regression', text: 'A step that must not change the float model changes it.' },
  { id: 'budget-exceeded', text: 'A budget of the baseline file is exceeded.' },
  { id: 'scale-illusion', text: 'A figure looks as good as before only because the value grew.' },
  { id: 'culprit', text: 'What the regression goes away with when it is swapped back.' },
] as const;

type Rule = (typeof RULES)[number]['id'];

const RULE_OF: Readonly<Record<string, Rule>> = {
  metric: 'metric-regression',
  value: 'value-regression',
  stage: 'stage-regression',
  budget: 'budget-exceeded',
  scale: 'scale-illusion',
};

interface Result {
  readonly rule: Rule;
  readonly level: 'error' | 'warning' | 'note';
  readonly text: string;
  readonly at: string;
  readonly subject: string;
  readonly from: readonly string[];
}

/** Results as SARIF and annotations show them, the culprit first. */
function listResults(report: CheckReport): Result[] {
  const { culprit, judgement } = report;
  const failures = listFailures(report).map(({ kind, message, at, subject, from, timesNoise }): Result => {
    const times = timesNoise === undefined ? '' : ` (${timesNoise.toFixed(1)} times its noise)`;
    return { rule: RULE_OF[kind]!, level: 'error', text: `${message}${times}`, at, subject, from };
  });
  const notes = judgement.findings
    .filter(({ kind }) => kind === 'scale')
    .map(
      ({ message, at, subject, from }): Result => ({
        rule: 'scale-illusion',
        level: 'note',
        text: message,
        at,
        subject,
        from,
      }),
    );
  const first: Result[] = culprit
    ? [
        {
          rule: 'culprit',
          level: 'error',
          text: `${culprit.what}: ${culprit.why}`,
          at: culprit.at,
          subject: culprit.names[0] ?? culprit.what,
          from: culprit.from,
        },
      ]
    : [];
  return [...first, ...failures, ...notes];
}

/** SARIF 2.1.0 (OASIS standard): a result at the line of the recipe or of the baseline, and at the node of the model. */
export function renderSarif(report: CheckReport): string {
  const results = listResults(report).map(({ rule, level, text, at, subject, from }) => {
    const { file, line } = placeOf(report, at);
    const nodes = from.length > 0 ? from : [subject];
    return {
      ruleId: rule,
      ruleIndex: RULES.findIndex(({ id }) => id === rule),
      level,
      message: { text },
      locations: [
        {
          physicalLocation: { artifactLocation: { uri: toUri(file) }, region: { startLine: line } },
          logicalLocations: nodes.map((fullyQualifiedName) => ({ fullyQualifiedName, kind: 'member' })),
        },
      ],
      // So that a scanner knows a result again when lines move.
      partialFingerprints: { 'npucCheck/v1': createHash('sha256').update(`${rule}\0${subject}`).digest('hex') },
    };
  });
  const log = {
    $schema: 'https://json.schemastore.org/sarif-2.1.0.json',
    version: '2.1.0',
    runs: [
      {
        tool: {
          driver: {
            name: 'npuc',
            version: report.measurement.npuc,
            rules: RULES.map(({ id, text }) => ({ id, shortDescription: { text } })),
          },
        },
        automationDetails: { id: `npuc-check/${report.measurement.target}/` },
        columnKind: 'utf16CodeUnits',
        results,
      },
    ],
  };
  return `${JSON.stringify(log, undefined, 1)}\n`;
}

/** A relative path as a URI reference: backslashes of Windows turned, what a URI cannot hold escaped. */
function toUri(file: string): string {
  return file
    .replaceAll('\\', '/')
    .replace(/^\.\//, '')
    .split('/')
    .map((part) => encodeURIComponent(part))
    .join('/');
}

/** JUnit's XML as GitLab, Jenkins and GitHub's reporters read it: a test case for every metric, step and value. */
export function renderJunit(report: CheckReport): string {
  const { judgement, measurement, culprit } = report;
  const failed = new Map(listFailures(report).map((finding) => [`${finding.kind} ${finding.subject}`, finding]));
  const cases: { suite: string; name: string; key: string }[] = [
    ...judgement.metrics.map(({ metric }) => ({ suite: 'metrics', name: metric.title, key: `metric ${metric.title}` })),
    ...measurement.stages.map(({ name }) => ({ suite: 'stages', name, key: `stage ${name}` })),
    ...measurement.values.map(({ name }) => ({ suite: 'values', name, key: `value ${name}` })),
    ...[...failed.values()]
      .filter(({ kind }) => kind === 'budget')
      .map(({ subject }) => ({ suite: 'budgets', name: subject, key: `budget ${subject}` })),
  ];
  const suites = ['metrics', 'stages', 'values', 'budgets'].flatMap((suite) => {
    const members = cases.filter((each) => each.suite === suite);
    if (members.length === 0) return [];
    const failures = members.filter(({ key }) => failed.has(key)).length;
    return [
      `  <testsuite name="${escapeXml(suite)}" tests="${members.length}" failures="${failures}" errors="0" skipped="0">`,
      ...members.flatMap(({ name, key }) => {
        const head = `    <testcase classname="npuc.check.${suite}" name="${escapeXml(name)}"`;
        const finding = failed.get(key);
        if (!finding) return [`${head}/>`];
        const { file, line } = placeOf(report, finding.at);
        const detail = [
          finding.message,
          ...(finding.timesNoise === undefined ? [] : [`${formatFigure(finding.timesNoise)} times its noise`]),
          ...(finding.from.length > 0 ? [`from ${finding.from.join(', ')}`] : []),
          `${file}:${line}`,
          ...(culprit ? [`culprit: ${culprit.what}: ${culprit.why}`] : []),
        ];
        return [
          `${head}>`,
          `      <failure type="${finding.kind}" message="${escapeXml(finding.message)}">${escapeXml(detail.join('\n'))}</failure>`,
          '    </testcase>',
        ];
      }),
      '  </testsuite>',
    ];
  });
  const total = `tests="${cases.length}" failures="${cases.filter(({ key }) => failed.has(key)).length}" errors="0"`;
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuites name="npuc check" ${total}>`,
    ...suites,
    '</testsuites>',
    '',
  ].join('\n');
}

/** XML 1.0 has no control characters but tab and line breaks, and no lone surrogates, not even escaped. */
function escapeXml(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cs}\ufffe\uffff]/gu, (character) => (/[\t\n\r]/.test(character) ? character : '\ufffd'))
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll('\n', '&#10;');
}

/** Annotations that are written: GitHub shows ten errors of a step. */
const ANNOTATIONS = 10;

/** GitHub's workflow commands, one a line: an annotation at the line of each of the first failures. */
export function renderAnnotations(report: CheckReport): string[] {
  const results = listResults(report).filter(({ level }) => level === 'error');
  return results.slice(0, ANNOTATIONS).map(({ rule, text, at }) => {
    const { file, line } = placeOf(report, at);
    const title = rule === 'culprit' ? 'npuc check: culprit' : `npuc check: ${rule}`;
    return `::error file=${escapeProperty(file)},line=${line},title=${escapeProperty(title)}::${escapeCommand(text)}`;
  });
}

/** What ends a message or a property of a workflow command, escaped as GitHub's toolkit does. */
function escapeCommand(text: string): string {
  return text.replaceAll('%', '%25').replaceAll('\r', '%0D').replaceAll('\n', '%0A');
}

function escapeProperty(text: string): string {
  return escapeCommand(text).replaceAll(':', '%3A').replaceAll(',', '%2C');
}
