// Parses an AsyncAPI document with the specification's own parser; prints what is wrong as JSON, one finding a line.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const require = createRequire(resolve(process.argv[2], "node_modules/x.js"));
const { Parser } = require("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[3], "utf8"));
for (const each of diagnostics) console.log(JSON.stringify({ code: each.code, severity: each.severity, message: each.message, path: each.path }));
process.exit(document && !diagnostics.some((each) => each.severity === 0) ? 0 : 1);
